// The film on this page would be played by this.
document.querySelectorAll("figure.film").forEach((film) => film.classList.add("film-on"));
