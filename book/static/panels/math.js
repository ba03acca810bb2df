"use strict";
// The book's formulas for its panels. Each names the chapter that derives it; the tests
// compare its numbers with the package's. Points are flat arrays x = [x0, y0, x1, ...]
// with `dim` numbers a point; t = 0 is noise, t = 1 is data.
var flowbook = window.flowbook || {};

// A path is four functions of t: the mean α_t x1, the width σ_t, their derivatives.
// (Chapter 10.)
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
// (Chapter 07.) The largest exponent is taken out, so that none underflows alone.
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

// One step of a method for one point. (Chapter 03.)
const moved = (x, v, h) => x.map((value, i) => value + h * v[i]);
flowbook.step = {
  euler: (field, x, t, h) => moved(x, field(x, t), h),
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
