"""The panels to touch: their numbers against the package's, and a reader's hands."""

import functools
import itertools
import math

import pytest
import torch

from flowbook import RK4, CosinePath, Euler, Midpoint, OTPath, VPPath, solve
from flowbook.marginal import EmpiricalMarginal, MixtureMarginal
from flowbook.toy import ring_mixture
from press import panels, site

pytestmark = pytest.mark.book

WHERE = {
    "idea": "overview",
    "map": "change_of_variables",
    "marginal": "marginal",
    "design": "paths",
    "end": "paths",
    "steps": "sampling",
    "race": "comparison",
}
PATHS = {
    "ot(0.01)": OTPath(sigma_min=0.01),
    "vp()": VPPath(),
    "cosine()": CosinePath(),
}
TIMES = (0.03, 0.4, 0.77, 0.96)
DATA = [-1.6, 0.9, 1.4, 1.1, 0.4, -1.3]
close = functools.partial(torch.testing.assert_close, rtol=1e-11, atol=1e-12)


def f64(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def formulas(chromium):
    """A blank page with the panels' formulas and nothing else."""
    page = chromium.new_page()
    page.add_script_tag(content=(panels.FOLDER / "math.js").read_text())
    yield page
    page.close()


@pytest.fixture
def touched(chromium):
    """Opens the page of a panel and returns (page, panel), with its errors noted."""
    pages = []

    def opened(name, **options):
        page = chromium.new_page(
            **{"viewport": {"width": 900, "height": 900}, **options}
        )
        page.problems = []
        page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
        page.on("pageerror", lambda e: page.problems.append(str(e)))
        page.goto((site.HTML / "nbs" / f"{WHERE[name]}.html").as_uri())
        pages.append(page)
        panel = page.locator(f'[data-panel="{name}"]')
        if options.get("java_script_enabled", True):  # else there is nothing to see
            panel.scroll_into_view_if_needed()
        return page, panel

    yield opened
    for page in pages:
        page.close()


# --- the numbers -------------------------------------------------------------------


@pytest.mark.parametrize("name", PATHS)
def test_schedules_and_their_derivatives_are_the_package_s(formulas, name):
    """Catches a sign or a factor in a panel's schedule, and a wrong clock in VP's."""
    code = f"""(times) => {{ const p = flowbook.paths.{name};
        return ["alpha", "sigma", "dalpha", "dsigma"].map(k => times.map(p[k])); }}"""
    path, t = PATHS[name], f64(TIMES)
    wanted = torch.stack(path.schedule(t))
    close(f64(formulas.evaluate(code, list(TIMES))), wanted)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", TIMES)
def test_the_marginal_velocity_is_the_package_s(formulas, name, t):
    """Catches weights without the path's width, and a mean of the wrong arrows."""
    x = [0.3, -0.4]
    code = f"([x, data, t]) => flowbook.velocity(flowbook.paths.{name}, data, 2, x, t)"
    marginal = EmpiricalMarginal(PATHS[name], f64(DATA).view(3, 2))
    wanted = marginal.velocity(f64([x]), t)[0]
    close(f64(formulas.evaluate(code, [x, DATA, t])), wanted)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t", [*TIMES, 1.0])
def test_the_field_of_a_mixture_is_the_package_s(formulas, name, t):
    """Catches a width without the Gaussians' own, or without its derivative."""
    x = [0.3, -0.4]
    ring = ring_mixture(5, radius=2.0, std=0.25, dtype=torch.float64)
    code = f"""([x, means, t]) => {{
        const path = flowbook.widened(flowbook.paths.{name}, 0.25);
        return flowbook.velocity(path, means, 2, x, t); }}"""
    if t == 1 and name == "vp()":
        pytest.skip("its dsigma is infinite there")
    wanted = MixtureMarginal(PATHS[name], ring).velocity(f64([x]), t)[0]
    means = ring.means.flatten().tolist()
    close(f64(formulas.evaluate(code, [x, means, t])), wanted)


@pytest.mark.parametrize("method", [Euler, Midpoint, RK4])
def test_a_followed_point_is_the_package_s(formulas, method):
    """Catches a step with a wrong node or weight."""
    x = [0.8, -1.1]
    code = """([x, data, method]) => { const path = flowbook.paths.ot(0.3);
        const field = (x, t) => flowbook.velocity(path, data, 2, x, t);
        return flowbook.follow(field, x, { steps: 7, method }).at(-1); }"""
    marginal = EmpiricalMarginal(OTPath(sigma_min=0.3), f64(DATA).view(3, 2))
    wanted = solve(marginal.velocity, f64([x]), method(7)).x[0]
    close(f64(formulas.evaluate(code, [x, DATA, method.__name__.lower()])), wanted)


def test_the_density_of_a_map_is_the_closed_form(formulas):
    """Catches a missing |f'|, and preimages that are not added."""
    code = """([a, b, xs]) => { const line = { f: z => a * z + b, df: () => a };
        return xs.map(x => flowbook.pushed(line, x)); }"""
    xs = [-1.0, 0.2, 2.5]
    normal = torch.distributions.Normal(f64(0.5), f64(2.0))
    close(f64(formulas.evaluate(code, [-2, 0.5, xs])), normal.log_prob(f64(xs)).exp())
    square = "xs => xs.map(x => flowbook.pushed({f: z => z * z, df: z => 2 * z}, x))"
    chi = f64([0.3, 1.7])  # one degree of freedom
    wanted = torch.exp(-chi / 2) / torch.sqrt(2 * math.pi * chi)
    close(f64(formulas.evaluate(square, chi.tolist())), wanted, rtol=1e-9, atol=0)


def test_a_curve_goes_through_its_knots_and_keeps_their_order(formulas):
    """Catches an overshoot, and a derivative that is not the curve's."""
    knots = [[-2, -3], [-1, -2.9], [0, 1], [1, 1.05], [2, 3]]
    code = """(knots) => { const { f, df } = flowbook.curve(knots);
        const grid = Array.from({length: 601}, (_, k) => -3 + k / 100);
        return [knots.map(([x]) => f(x)), grid.map(f), grid.map(df),
                grid.map(x => (f(x + 1e-6) - f(x - 1e-6)) / 2e-6)]; }"""
    at_knots, values, slopes, differences = map(f64, formulas.evaluate(code, knots))
    close(at_knots, f64([y for _, y in knots]))
    assert (values.diff() > 0).all()
    # (f(x+h) - f(x-h)) / 2h: rounding 1e-16 * 3 / 1e-6, and a kink in f'' at the knots
    torch.testing.assert_close(slopes, differences, rtol=0, atol=3e-5)


def test_noise_is_standard_normal(formulas):
    """Catches a generator with a wrong mean or width: 4 standard errors."""
    z = f64(formulas.evaluate("() => flowbook.normals(20000, 3)"))
    assert abs(z.mean()) < 4 / 20000**0.5
    assert abs(z.square().mean() - 1) < 4 * (2 / 20000) ** 0.5
    assert z.unique().numel() > 19990


# --- the hands -----------------------------------------------------------------------


@pytest.mark.parametrize("name", WHERE)
def test_a_panel_draws_and_answers_the_keyboard(touched, name):
    """Catches a script that fails, a slider nobody hears, a control without a name."""
    page, panel = touched(name)
    assert panel.locator(".panel-status").inner_text()
    picture = "e => e.querySelector('canvas').toDataURL()"
    before = panel.evaluate(picture)
    control = panel.locator(".panel-handle, input[type=range]").first
    control.focus()
    for _ in range(6):
        page.keyboard.press("ArrowUp")
    changed = f"([panel, before]) => ({picture})(panel) !== before"
    page.wait_for_function(changed, arg=[panel.element_handle(), before])
    names = (
        "e => [...e.querySelectorAll('button, input, select')].map(c => "
        "c.ariaLabel || c.textContent || c.closest('label')?.textContent)"
    )
    assert all(panel.evaluate(names))
    assert page.problems == []


@pytest.mark.parametrize("name", WHERE)
def test_a_panel_bears_small_and_zero_sizes(touched, name):
    """Catches a plot that divides by its width, or scrolls a phone sideways."""
    page, panel = touched(name)
    panel.evaluate("e => (e.style.display = 'none')")
    page.set_viewport_size({"width": 1, "height": 1})
    page.set_viewport_size({"width": 360, "height": 740})
    panel.evaluate("e => (e.style.display = '')")
    fits = """panel => document.documentElement.scrollWidth <= innerWidth
        && panel.querySelector("canvas").getBoundingClientRect().width > 200"""
    page.wait_for_function(fits, arg=panel.element_handle())
    assert page.problems == []


@pytest.mark.parametrize("name", WHERE)
def test_no_handle_lies_on_another(touched, name):
    """Catches two handles in one place: the lower one can't be taken hold of."""
    _, panel = touched(name, viewport={"width": 360, "height": 740})
    centres = panel.locator("button.panel-handle").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect()).map(b => [b.x, b.y])"
    )
    apart = torch.pdist(f64(centres)) if len(centres) > 1 else f64([math.inf])
    assert apart.min() >= 24  # pixels: WCAG 2.2, target size


@pytest.mark.parametrize("name", WHERE)
def test_without_javascript_the_figure_stands_alone(touched, name):
    """Catches an empty frame, and a panel below a picture without words."""
    page, panel = touched(name, java_script_enabled=False)
    assert not panel.is_visible()
    before = page.locator(f'figure:has(img):has(~ [data-panel="{name}"]) img')
    images = before.all() or page.locator("figure img").all()
    assert images and all(i.get_attribute("alt") for i in images)


def test_the_idea_s_steps_show_what_they_say(touched):
    """Catches a mean arrow of another place or time, and a flow off the lines' law."""
    page, panel = touched("idea")
    ring = ring_mixture(5, radius=2.0, std=0.25, dtype=torch.float64)
    panel.get_by_role("button", name="2 Mean arrow").press("Enter")
    place = panel.locator(".panel-handle")
    place.focus()
    page.keyboard.press("ArrowRight")
    x = f64([panel.evaluate("e => [e.panel.place().x, e.panel.place().y]")])
    u, v = MixtureMarginal(OTPath(), ring).velocity(x, 0.4)[0].tolist()
    panel.get_by_text(f"velocity is ({u:.2f}, {v:.2f})").wait_for()
    box = panel.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
    assert abs(panel.evaluate("e => e.panel.place().x")) < 0.05
    panel.get_by_role("button", name="4 Flow").click()
    assert place.count() == 0
    clouds = """(e, t) => ["onLine", "onWay"].map(f => Array.from(
        { length: e.panel.count }, (_, n) => e.panel[f](n, t)))"""
    for t in (0.5, 1):
        lines, ways = map(f64, panel.evaluate(clouds, t))
        # The same law: second moments agree but for the scatter of 240 and 240 points.
        moments = [cloud.square().sum(1) for cloud in (lines, ways)]
        error = sum(m.var() / len(m) for m in moments) ** 0.5
        assert abs(moments[0].mean() - moments[1].mean()) < 4 * error
    near = torch.cdist(ways, ring.means).amin(1)  # the last: t = 1
    assert near.median() < 0.25 * math.sqrt(2 * math.log(2)) + 4 * 0.25 / 240**0.5
    assert page.problems == []


def test_data_points_come_move_and_go(touched):
    """Catches a click that adds nothing, a drag without effect, a Delete unheard."""
    page, panel = touched("marginal")
    handles = panel.locator(".panel-handle")
    assert handles.count() == 3
    box = panel.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + 40, box["y"] + 40)
    assert handles.count() == 4
    place = handles.last.get_attribute("aria-label")
    handles.last.hover()
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 90, steps=4)
    page.mouse.up()
    assert handles.last.get_attribute("aria-label") != place
    assert handles.count() == 4  # to let go is no click
    for _ in range(4):
        handles.last.focus()
        page.keyboard.press("Delete")
    assert handles.count() == 0
    assert "at least one" in panel.locator(".panel-status").inner_text()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    panel.locator("input[type=range]").fill("0.5")
    assert page.problems == []


def test_too_many_and_coincident_points_and_nonsense(touched):
    """Catches a page that hangs on 100,000 points, and NaN from equal or wild ones."""
    page, panel = touched("marginal")
    panel.evaluate("""e => { for (let k = 0; k < 100000; k++) e.panel.add(0.5, 0.5);
        e.panel.add(NaN, 0); e.panel.add(undefined, Infinity); }""")
    assert panel.locator(".panel-handle").count() == 30
    assert "30 data points are the most" in panel.locator(".panel-status").inner_text()
    panel.get_by_role("button", name="Start again").click()
    assert panel.locator(".panel-handle").count() == 3
    assert page.problems == []


def test_a_finger_adds_and_drags(touched):
    """Catches a panel that only knows the mouse."""
    page, panel = touched("marginal", has_touch=True)
    box = panel.locator("canvas").bounding_box()
    page.touchscreen.tap(box["x"] + 60, box["y"] + 60)
    assert panel.locator(".panel-handle").count() == 4
    style = "e => getComputedStyle(e.querySelector('.panel-handle')).touchAction"
    assert panel.evaluate(style) == "none"  # so that a drag does not scroll the page
    assert page.problems == []


def test_euler_s_error_shrinks_by_its_order(touched):
    """Catches a choice without effect: order 1 halves the error, 2 quarters it."""
    _, panel = touched("steps")

    def error(method, steps):
        panel.locator("select").select_option(method)
        panel.locator("input[type=range]").fill(str(steps))
        return panel.evaluate("e => e.panel.error")

    assert 1.7 < error("euler", 25) / error("euler", 50) < 2.3
    assert 3 < error("midpoint", 25) / error("midpoint", 50) < 5


# --- the landing page -----------------------------------------------------------------

INDEX = site.HTML / "nbs" / "index.html"


def test_the_first_panel_runs_until_it_is_taken(chromium):
    """Catches noise that stands still at the door, and a clock that nobody can stop."""
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.clock.install(time=0)
    page.goto(INDEX.as_uri())
    panel = page.locator('[data-panel="marginal"]')
    pause = panel.get_by_role("button", name="Pause")
    pause.wait_for(state="attached")
    time = panel.locator("input[type=range]")
    page.clock.pause_at(86_400)  # a jump to its end, where it rests for 1.5 s
    page.clock.run_for(3500)
    assert pause.count() == 1 and 0 < float(time.input_value()) < 0.99
    pause.press("Enter")
    stopped = time.input_value()
    page.clock.run_for(9000)
    assert time.input_value() == stopped
    page.close()


def test_nothing_runs_where_reduced_motion_is_asked_for(chromium):
    """Catches a landing page that moves in spite of the reader's setting."""
    page = chromium.new_page(reduced_motion="reduce")
    page.goto(INDEX.as_uri())
    for place in ('[data-panel="marginal"]', "figure.film"):
        page.locator(place).scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        assert page.locator(place).get_by_role("button", name="Play").count() == 1
    page.close()


def test_the_film_at_the_door_begins_again(chromium):
    """Catches a film that is over before the sentence above it is read."""
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    page.clock.install(time=0)
    page.goto(INDEX.as_uri())
    film = page.locator("figure.film")
    film.scroll_into_view_if_needed()
    film.get_by_role("button", name="Pause").wait_for(state="attached")
    page.clock.pause_at(86_400)
    frame = film.locator("input[type=range]")
    seen = []
    for _ in range(40):
        page.clock.run_for(250)
        seen.append(int(frame.input_value()))
    assert any(b < a for a, b in itertools.pairwise(seen[4:])), "no second time"
    film.get_by_role("button", name="Pause").press("Enter")
    stopped = frame.input_value()
    page.clock.run_for(5000)
    assert frame.input_value() == stopped
    page.close()


def test_a_figure_stands_for_the_panel_without_scripts_and_on_paper(chromium):
    """Catches a hole at the door, and the same thing shown twice."""
    page = chromium.new_page()
    page.goto(INDEX.as_uri())
    picture = page.locator("figure.stand-in img")
    assert not picture.is_visible()
    page.emulate_media(media="print")
    assert picture.is_visible() and picture.get_attribute("alt")
    assert not page.locator(".panel").is_visible()
    page.close()
    page = chromium.new_page(java_script_enabled=False)
    page.goto(INDEX.as_uri())
    assert page.locator("figure.stand-in img").is_visible()
    assert not page.locator(".panel").is_visible()
    page.close()


# --- films ---------------------------------------------------------------------------


def test_a_film_can_be_played_stopped_moved_and_slowed(chromium):
    """Catches a player that nobody can stop, and one that runs against the reader."""
    page = chromium.new_page(reduced_motion="reduce")
    page.clock.install(time=0)
    page.goto((site.HTML / "nbs" / "overview.html").as_uri())
    film = page.locator("figure.film").first
    film.scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    page.clock.pause_at(86_400)  # from here on the page's time is ours
    frame = film.locator("input[type=range]")
    last = frame.get_attribute("max")
    assert frame.input_value() == last  # it did not start by itself
    film.get_by_role("button", name="Play").press("Enter")
    page.clock.run_for(300)
    film.get_by_role("button", name="Pause").press("Enter")
    stopped = frame.input_value()
    assert 0 < int(stopped) < int(last)
    page.clock.run_for(200)
    assert frame.input_value() == stopped
    sheet = "e => e.querySelector('.film-sheet').style.backgroundPosition"
    before = film.evaluate(sheet)
    frame.press("ArrowRight")
    assert film.evaluate(sheet) != before
    assert film.locator("select").input_value() == "1"
    page.close()


def test_a_film_starts_by_itself_when_seen(chromium):
    """Catches a film that waits for a reader who does not know that it moves."""
    page = chromium.new_page(viewport={"width": 1000, "height": 900})
    page.clock.install(time=0)
    page.clock.pause_at(1)  # or it could be over before it is looked at
    page.goto((site.HTML / "nbs" / "overview.html").as_uri())
    film = page.locator("figure.film").first
    film.scroll_into_view_if_needed()
    film.get_by_role("button", name="Pause").wait_for(state="attached")
    page.close()


def test_without_javascript_a_film_is_a_still_with_words(chromium):
    """Catches motion that cannot be stopped, and a missing picture."""
    page = chromium.new_page(java_script_enabled=False)
    page.goto((site.HTML / "nbs" / "overview.html").as_uri())
    film = page.locator("figure.film").first
    assert film.locator(".film-still").is_visible()
    assert film.locator(".film-still").get_attribute("alt")
    assert not film.locator(".film-sheet").is_visible()
    page.close()
