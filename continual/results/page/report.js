"use strict";
// Tables are sorted by the buttons in their heads. A first press puts the best line first, a second turns it round;
// lines without a value stay last, and lines of the same value keep their order.
for (const button of document.querySelectorAll("button.sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const body = head.closest("table").tBodies[0];
    const first = head.dataset.first;
    const turned = head.getAttribute("aria-sort") === first;
    const order = turned ? (first === "ascending" ? "descending" : "ascending") : first;
    const sign = order === "ascending" ? 1 : -1;
    const values = new Map(Array.from(body.rows, (row) => [row, row.cells[head.cellIndex].dataset.value]));
    const compare = (one, other) => {
      const [a, b] = [values.get(one), values.get(other)];
      if (head.dataset.kind === "text") return sign * a.localeCompare(b, undefined, { numeric: true });
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (Number(a) - Number(b));
    };
    for (const each of head.parentElement.cells) each.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    body.append(...Array.from(body.rows).sort(compare));
  });
}
