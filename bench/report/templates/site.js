"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Sorting: a heading becomes a button. What is not known stays last in both directions.
  const order = (row, place) => row.cells[place].dataset.order;
  const compare = (a, b) => {
    const numbers = [Number(a), Number(b)];
    return numbers.some(Number.isNaN) ? a.localeCompare(b, "en", { numeric: true }) : numbers[0] - numbers[1];
  };
  const sort = (table, place, sign) => {
    const [known, unknown] = [true, false].map((wanted) =>
      [...table.tBodies[0].rows].filter((row) => (order(row, place) !== undefined) === wanted),
    );
    known.sort((a, b) => sign * compare(order(a, place), order(b, place)));
    table.tBodies[0].append(...known, ...unknown);
  };
  all("[data-sorts] table").forEach((table) => {
    all("th[data-sort]", table).forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = head.classList.contains("text") ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const now = head.getAttribute("aria-sort") === first ? other : first;
        all("[aria-sort]", table).forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", now);
        sort(table, head.cellIndex, now === "ascending" ? 1 : -1);
      });
    });
  });

  // Filtering: rows that do not match are hidden, and how many are left is said.
  const form = document.getElementById("filters");
  if (form) {
    const rows = all("#board tbody tr");
    const facets = all("select", form);
    const matches = (row) =>
      facets.every((one) => !one.value || row.getAttribute(`data-${one.name}`) === one.value) &&
      row.cells[0].textContent.toLowerCase().includes(form.elements.text.value.trim().toLowerCase()) &&
      (!form.elements.good.checked || row.querySelector("td.good") !== null);
    const apply = () => {
      rows.forEach((row) => (row.hidden = !matches(row)));
      const left = rows.filter((row) => !row.hidden).length;
      document.getElementById("count").textContent = `${left} of ${rows.length} rows`;
      dispatchEvent(new Event("resize"));
    };
    form.addEventListener("input", apply);
    form.addEventListener("reset", () => setTimeout(apply));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }
  dispatchEvent(new Event("resize"));
})();
