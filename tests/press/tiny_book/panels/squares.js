// A number to slide, and its square: what a panel is, and no more.
document.querySelectorAll('[data-panel="squares"]').forEach((place) => {
  place.innerHTML = '<label>n <input type="range" min="1" max="9" value="3"></label> <output>9</output>';
  const [slider, shown] = [place.querySelector("input"), place.querySelector("output")];
  slider.addEventListener("input", () => (shown.textContent = slider.value ** 2));
});
