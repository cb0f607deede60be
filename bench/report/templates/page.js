"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Theme: the system's until the reader chooses; the choice lasts as long as the page.
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => {
    toggle.textContent = dark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
  };
  toggle.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  toggle.hidden = false;
  label();

  // What scrolls within its box can be scrolled by keyboard, and on a phone a hint says that there is more.
  const reach = () =>
    all(".scroll").forEach((box) => {
      const wide = box.scrollWidth > box.clientWidth;
      if (wide) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
      box.parentElement.classList.toggle("wide", wide);
    });
  all("details").forEach((one) => one.addEventListener("toggle", reach));
  addEventListener("resize", reach);
  reach();

  // On paper nothing can be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    folded.forEach((one) => (one.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((one) => (one.open = false)));
})();
