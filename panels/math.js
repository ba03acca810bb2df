"use strict";
// The book's formulas for its panels. Each names the chapter that derives it; the tests
// compare its numbers with the package's. Points are flat arrays x = [x0, y0, x1, ...]
// with `dim` numbers a point; t = 0 is noise, t = 1 is data.
var flowbook = window.flowbook || {};

// A path is four functions of t: the mean α_t x1, the width σ_t, their derivatives.
// (Chapter `paths`.)
flowbook.paths = {
  ot: (sigmaMin = 0) => ({
    alpha: (t) => t,
    dalpha: () => 1,
    sigma: (t) => 1 - t + sigmaMin * t,
    dsigma: () => sigmaMin - 1,
  }),
  // B is the integral of β from 0 to 1 - t: α = exp(-B/2), σ² = 1 - exp(-B).
  vp: (betaMin = 0.1, betaMax = 20) => {
    const b = (t) => betaMin + (1 - t) * (betaMax - betaMin);
    const B = (t) => (1 - t) * betaMin + ((1 - t) ** 2 * (betaMax - betaMin)) / 2;
    const alpha = (t) => Math.exp(-B(t) / 2);
    const sigma = (t) => Math.sqrt(-Math.expm1(-B(t)));
    return {
      alpha,
      sigma,
      dalpha: (t) => (b(t) * alpha(t)) / 2,
      dsigma: (t) => (-b(t) * Math.exp(-B(t))) / (2 * sigma(t)),
    };
  },
  cosine: () => ({
    alpha: (t) => Math.sin((Math.PI * t) / 2),
    dalpha: (t) => (Math.PI / 2) * Math.cos((Math.PI * t) / 2),
    sigma: (t) => Math.sin((Math.PI * (1 - t)) / 2),
    dsigma: (t) => (-Math.PI / 2) * Math.cos((Math.PI * (1 - t)) / 2),
  }),
};

// The posterior weights of the data points at x: a softmax of -|x - α x1|² / (2σ²).
// (Chapter `marginal`.) The largest exponent is taken out: none underflows alone.
flowbook.weights = (path, data, dim, x, t) => {
  const a = path.alpha(t);
  const scale = 1 / (2 * path.sigma(t) ** 2);
  const logits = [];
  for (let n = 0; n < data.length; n += dim) {
    let square = 0;
    for (let i = 0; i < dim; i++) square += (x[i] - a * data[n + i]) ** 2;
    logits.push(-square * scale);
  }
  const top = Math.max(...logits);
  const w = logits.map((l) => Math.exp(l - top));
  const total = w.reduce((sum, v) => sum + v, 0);
  return w.map((v) => v / total);
};

// The exact marginal velocity of a finite data set: Theorem 3's field at the posterior
// mean m, α̇ m + (σ̇/σ)(x - α m), as the field is affine in x1. (Chapters 07 and 09.)
flowbook.velocity = (path, data, dim, x, t) => {
  const w = flowbook.weights(path, data, dim, x, t);
  const rate = path.dsigma(t) / path.sigma(t);
  const a = path.alpha(t);
  const da = path.dalpha(t);
  return Array.from({ length: dim }, (_, i) => {
    let mean = 0;
    for (let n = 0; n < w.length; n++) mean += w[n] * data[n * dim + i];
    return da * mean + rate * (x[i] - a * mean);
  });
};

// The path to a round Gaussian about x1, of standard deviation s, in the place of x1: its
// width is √(σ² + α² s²). With it `velocity` is the exact field of a mixture of equal
// round Gaussians about the data points. (Chapter `marginal`.)
flowbook.widened = (path, s) => {
  const sigma = (t) => Math.hypot(path.sigma(t), s * path.alpha(t));
  const dsigma = (t) =>
    (path.sigma(t) * path.dsigma(t) + s * s * path.alpha(t) * path.dalpha(t)) / sigma(t);
  return { ...path, sigma, dsigma };
};

// One step of a method for one point. (Chapter `flows`.)
const moved = (x, v, h) => x.map((value, i) => value + h * v[i]);
flowbook.step = {
  euler: (field, x, t, h) => moved(x, field(x, t), h),
  midpoint: (field, x, t, h) =>
    moved(x, field(moved(x, field(x, t), h / 2), t + h / 2), h),
  rk4: (field, x, t, h) => {
    const k1 = field(x, t);
    const k2 = field(moved(x, k1, h / 2), t + h / 2);
    const k3 = field(moved(x, k2, h / 2), t + h / 2);
    const k4 = field(moved(x, k3, h), t + h);
    return x.map((v, i) => v + (h / 6) * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]));
  },
};

// The states of one point after 0, 1, ..., steps equal steps from t0 to t1.
flowbook.follow = (field, x, { steps, method = "rk4", t0 = 0, t1 = 1 }) => {
  const h = (t1 - t0) / steps;
  const states = [x];
  for (let k = 0; k < steps; k++)
    states.push(flowbook.step[method](field, states[k], t0 + k * h, h));
  return states;
};

// A smooth curve through knots [[x, y], ...]: cubic pieces with the slopes of Fritsch
// and Carlson (1980), so that it rises where the knots rise and never overshoots.
// Straight outside. Returns the function and its derivative.
flowbook.curve = (knots) => {
  const n = knots.length;
  const rise = [];
  for (let k = 0; k + 1 < n; k++)
    rise.push((knots[k + 1][1] - knots[k][1]) / (knots[k + 1][0] - knots[k][0]));
  const slope = knots.map((_, k) => {
    if (k === 0) return rise[0];
    if (k === n - 1) return rise[n - 2];
    const [a, b] = [rise[k - 1], rise[k]];
    return a * b > 0 ? (2 * a * b) / (a + b) : 0; // the harmonic mean keeps the order
  });
  const piece = (x) => {
    let k = 0;
    while (k < n - 2 && x > knots[k + 1][0]) k++;
    return k;
  };
  const at = (x, order) => {
    const end = x < knots[0][0] ? 0 : x > knots[n - 1][0] ? n - 1 : -1;
    if (end >= 0)
      return order ? slope[end] : knots[end][1] + slope[end] * (x - knots[end][0]);
    const k = piece(x);
    const h = knots[k + 1][0] - knots[k][0];
    const s = (x - knots[k][0]) / h;
    const [y0, y1] = [knots[k][1], knots[k + 1][1]];
    const [m0, m1] = [h * slope[k], h * slope[k + 1]];
    const c = 3 * (y1 - y0) - 2 * m0 - m1;
    const d = 2 * (y0 - y1) + m0 + m1;
    return order ? (m0 + 2 * c * s + 3 * d * s * s) / h : y0 + s * (m0 + s * (c + s * d));
  };
  return { f: (x) => at(x, 0), df: (x) => at(x, 1) };
};

flowbook.normalDensity = (z) => Math.exp(-z * z / 2) / Math.sqrt(2 * Math.PI);

// The density at x of X = f(Z), Z standard normal: the sum of π(z)/|f'(z)| over all z
// with f(z) = x, which are found between -6 and 6 by halving. (Chapter
// `change_of_variables`.)
flowbook.pushed = ({ f, df }, x, cells = 240) => {
  let total = 0;
  const ends = [];
  for (let k = 0; k <= cells; k++) {
    const z = -6 + (12 * k) / cells;
    ends.push([z, f(z) - x]);
  }
  for (let k = 0; k < cells; k++) {
    let [[a, fa], [b, fb]] = [ends[k], ends[k + 1]];
    if (fa > 0 === fb > 0) continue;
    for (let i = 0; i < 45; i++) {
      const middle = (a + b) / 2;
      if (f(middle) - x > 0 === fa > 0) a = middle;
      else b = middle;
    }
    total += flowbook.normalDensity(a) / Math.abs(df(a));
  }
  return total;
};

// Standard normal numbers from a seed: mulberry32, then Box and Muller. The same noise
// each time, so that a change on the screen comes from the reader and not from luck.
flowbook.normals = (count, seed = 1) => {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return ((z ^ (z >>> 14)) >>> 0) / 4294967296;
  };
  return Array.from({ length: count }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
    return radius * Math.cos(2 * Math.PI * uniform());
  });
};
window.flowbook = flowbook;
