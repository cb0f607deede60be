"use strict";
(() => {
  const root = document.documentElement;
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // One of a row of things is the tab stop; arrow keys, Home and End move on.
  const rove = (items, chosen) => {
    items.forEach((item, index) => {
      item.addEventListener("keydown", (event) => {
        const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: items.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        items[(to + items.length) % items.length].focus();
      });
      item.addEventListener("focus", () => {
        items.forEach((other) => (other.tabIndex = other === item ? 0 : -1));
        if (chosen) chosen(item);
      });
    });
  };

  all(".answer").forEach((answer) => {
    const tabs = all("[role=tab]", answer);
    const choose = (chosen) =>
      tabs.forEach((tab) => {
        const selected = tab === chosen;
        tab.setAttribute("aria-selected", String(selected));
        tab.tabIndex = selected ? 0 : -1;
        document.getElementById(tab.getAttribute("aria-controls")).hidden = !selected;
      });
    rove(tabs, choose);
    tabs.forEach((tab) => tab.addEventListener("click", () => choose(tab)));
    all(".panel", answer).forEach((panel) => {
      panel.setAttribute("role", "tabpanel");
      panel.classList.add("tabbed");
      rove(all(".t[tabindex]", panel));
    });
    answer.querySelector(".tabs").hidden = false;
    choose(tabs[0]);
  });

  // The story of a token. Its title would show a second time, so it moves to data.
  const tip = document.getElementById("tip");
  let shownFor = null;
  const hide = () => {
    tip.hidden = true;
    if (shownFor) shownFor.removeAttribute("aria-describedby");
    shownFor = null;
  };
  const place = () => {
    if (!shownFor) return;
    const box = shownFor.getClientRects()[0];
    const left = Math.min(Math.max(8, box.left), root.clientWidth - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 8}px`;
  };
  const show = (token) => {
    hide();
    shownFor = token;
    tip.textContent = token.dataset.story;
    tip.hidden = false;
    token.setAttribute("aria-describedby", "tip");
    place();
  };
  all(".tokens [title]").forEach((token) => {
    token.dataset.story = token.title;
    token.removeAttribute("title");
    token.addEventListener("mouseenter", () => show(token));
    token.addEventListener("mouseleave", hide);
    token.addEventListener("focus", () => show(token));
    token.addEventListener("blur", hide);
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  // Moving the focus scrolls the page, so scrolling must not close what the focus opened.
  addEventListener("scroll", place, { passive: true, capture: true });
  addEventListener("resize", place);
})();
