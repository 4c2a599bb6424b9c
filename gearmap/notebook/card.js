// The live card of a run. What it shows comes as three traits:
//   state  a small plain object, several times a second (display/view.py: card_state)
//   rows   the first failed tasks, only when there are more of them (card_rows)
//   text   the end of what tasks printed
//   hides  the class of what stands in the notebook for those who open it without this card
// Nothing that is on the page is made anew while the run goes on, so what a person has opened stays open and what has
// the focus keeps it. All text is set as text, never as HTML. dom.js stands before this.

function showBar(bar, state) {
  const parts = state.parts.filter((part) => part[2] > 0);
  patch(
    bar,
    parts,
    (part) => part[0],
    (part) => make("span", `gm-part gm-${part[0]}`),
    (node, [, word, count]) => {
      node.style.flexGrow = String(count);
      node.title = `${count.toLocaleString("en")} ${word}`;
    },
  );
  bar.setAttribute("aria-valuenow", String(state.settled));
  if (state.total === null) bar.removeAttribute("aria-valuemax");
  else bar.setAttribute("aria-valuemax", String(state.total));
  bar.setAttribute("aria-valuetext", state.line);
}

function showLegend(legend, state) {
  patch(
    legend,
    state.parts,
    (part) => part[0],
    (part) => {
      const node = make("span", "gm-word");
      make("span", `gm-swatch gm-${part[0]}`, node).setAttribute("aria-hidden", "true");
      make("span", "", node);
      return node;
    },
    (node, [, word, count]) => {
      setText(node.lastChild, `${word} ${count.toLocaleString("en")}`);
      node.classList.toggle("gm-none", count === 0);
    },
  );
}

function showWorkers(strip, state) {
  strip.hidden = state.workers.length === 0;
  patch(
    strip,
    state.workers,
    (worker) => worker[0] || "more",
    () => {
      const node = make("li", "");
      make("span", "gm-name", node);
      make("span", "", node);
      return node;
    },
    (node, [name, kind, words]) => {
      if (node.className !== `gm-worker gm-is-${kind}`) node.className = `gm-worker gm-is-${kind}`;
      setText(node.firstChild, name);
      setText(node.lastChild, words);
    },
  );
}

function failureRow(row) {
  const node = make("tr", "");
  make("td", "gm-number", node);
  make("td", "", node);
  make("td", "gm-number", node);
  const cell = make("td", "", node);
  if (!row.traceback) {
    make("span", "", cell);
    return node;
  }
  const details = make("details", "", cell);
  make("summary", "", details);
  make("div", "gm-call", details);
  make("pre", "", details).tabIndex = 0;
  return node;
}

function showFailures(box, rows, count) {
  box.hidden = count === 0 && rows.length === 0;
  const shown = rows.length < count ? ` (the first ${rows.length} are shown)` : "";
  setText(box.querySelector("summary"), `${count.toLocaleString("en")} failed${shown}`);
  patch(box.querySelector("tbody"), rows, (row) => row.task, failureRow, (node, row) => {
    setText(node.children[0], `#${row.task}`);
    setText(node.children[1], row.worker);
    setText(node.children[2], String(row.attempts));
    const cell = node.children[3].firstChild;
    if (cell.tagName !== "DETAILS") {
      setText(cell, row.error);
      return;
    }
    setText(cell.children[0], row.error);
    setText(cell.children[1], row.call);
    setText(cell.children[2], row.traceback);
  });
}

function failureBox(card) {
  const box = make("details", "gm-failures", card);
  make("summary", "", box);
  const table = make("table", "", box);
  const head = make("tr", "", make("thead", "", table));
  for (const word of ["task", "worker", "attempts", "error"]) make("th", "", head, word).scope = "col";
  make("tbody", "", table);
  return box;
}

function render({ model, el }) {
  make("style", "", el, `.${model.get("hides")} { display: none; }`);
  const card = make("section", "gm-card", el);
  const top = make("div", "gm-top", card);
  const title = make("span", "gm-title", top);
  const status = make("span", "gm-status", top);
  status.setAttribute("role", "status");
  status.setAttribute("aria-live", "polite");
  const cancel = make("button", "gm-cancel", top, "Cancel");
  cancel.type = "button";
  const bar = make("div", "gm-bar", card);
  bar.setAttribute("role", "progressbar");
  bar.setAttribute("aria-valuemin", "0");
  const line = make("div", "gm-line", card);
  const legend = make("div", "gm-legend", card);
  const strip = make("ul", "gm-strip", card);
  strip.setAttribute("aria-label", "workers");
  const where = make("div", "gm-where", card);
  const failures = failureBox(card);
  const output = make("details", "gm-output", card);
  make("summary", "", output, "output of tasks");
  const text = make("pre", "", output);
  text.tabIndex = 0;

  cancel.addEventListener("click", () => {
    cancel.disabled = true; // at once: the kernel may take a moment to hear of it
    cancel.textContent = "Cancelling...";
    model.send({ op: "cancel" });
  });

  function showState() {
    const state = model.get("state");
    if (!state || !state.parts) return;
    card.setAttribute("aria-label", `gearmap ${state.title}`);
    setText(title, state.title);
    setText(status, state.status);
    setText(line, state.line);
    setText(where, state.where);
    cancel.hidden = state.is_over || !model.get("can_cancel");
    showBar(bar, state);
    showLegend(legend, state);
    showWorkers(strip, state);
    showFailures(failures, model.get("rows"), state.n_failed);
  }

  function showText() {
    const at_end = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
    setText(text, model.get("text"));
    output.hidden = !model.get("text");
    if (at_end) text.scrollTop = text.scrollHeight;
  }

  model.on("change:state", showState);
  model.on("change:rows", showState);
  model.on("change:text", showText);
  showState();
  showText();
  return () => {
    model.off("change:state", showState);
    model.off("change:rows", showState);
    model.off("change:text", showText);
  };
}

export default { render };
