// The live card of a cluster. What it shows comes as one trait, `state` (overview/cardstate.py: cluster_card_state).
// While somebody can see it, it says so every two seconds; without that nobody is asked anything.
// Nothing that is on the page is made anew, so what a person has opened stays open. All text is set as text. dom.js
// stands before this.

const SIGN_OF_LIFE = 2000; // milliseconds; the kernel gives up after 7000
const STALE_AFTER = 5000; // without news the time is all that holds

function table(parent, label, columns) {
  const node = make("table", "gm-table", parent);
  node.setAttribute("aria-label", label);
  const head = make("tr", "", make("thead", "", node));
  for (const [word, kind] of columns) make("th", kind, head, word).scope = "col";
  make("tbody", "", node);
  return node;
}

function showRows(node, rows, kinds) {
  node.hidden = rows.length === 0;
  patch(
    node.querySelector("tbody"),
    rows,
    (row) => row[0],
    () => {
      const line = make("tr", "");
      for (const kind of kinds) make("td", kind === "state" ? "gm-state" : kind, line);
      return line;
    },
    (line, row) => {
      kinds.forEach((kind, at) => {
        const cell = line.children[at];
        const value = row[at];
        if (kind === "state") {
          const [state, words] = value;
          if (cell.dataset.state !== state) cell.dataset.state = state;
          setText(cell, words);
        } else {
          setText(cell, typeof value === "number" ? value.toLocaleString("en") : value);
        }
      });
    },
  );
}

const WORKER_COLUMNS = [["worker", ""], ["state", ""], ["task", ""], ["CPU", "gm-number"], ["memory", "gm-number"]];
const WORKER_KINDS = ["", "state", "", "gm-number", "gm-number"];

function nodeBox() {
  const box = make("details", "gm-node");
  box.open = true;
  const summary = make("summary", "", box);
  make("span", "gm-title", summary);
  make("span", "gm-use", summary);
  make("div", "gm-facts", box);
  table(box, "workers of the node", WORKER_COLUMNS);
  return box;
}

function showNode(box, [, name, facts, use, workers]) {
  setText(box.children[0].children[0], name);
  setText(box.children[0].children[1], use);
  setText(box.children[1], facts);
  const rows = workers.map(([worker, state, task, cpu, memory]) => [worker, [state, state], task, cpu, memory]);
  showRows(box.children[2], rows, WORKER_KINDS);
}

function scaleBox(parent, model) {
  const box = make("span", "gm-scale", parent);
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "number of workers");
  const less = make("button", "gm-step", box, "−");
  const field = make("input", "gm-count", box);
  const more = make("button", "gm-step", box, "+");
  less.type = more.type = "button";
  less.setAttribute("aria-label", "one worker less");
  more.setAttribute("aria-label", "one worker more");
  field.type = "number";
  field.min = "1";
  field.setAttribute("aria-label", "workers");
  field.dataset.lmSuppressShortcuts = "true"; // what is typed here is for nobody else
  let asked = null; // what was asked for and has not come back yet

  function ask(number) {
    if (!Number.isInteger(number) || number < 1) return;
    asked = number;
    field.value = String(number);
    less.disabled = number <= 1;
    model.send({ op: "scale", workers: number });
  }
  const now = () => asked ?? model.get("state").wanted;
  less.addEventListener("click", () => ask(now() - 1));
  more.addEventListener("click", () => ask(now() + 1));
  const askTyped = () => Number(field.value) !== now() && ask(Number(field.value));
  field.addEventListener("change", askTyped);
  field.addEventListener("keydown", (event) => event.key === "Enter" && askTyped());
  return (wanted) => {
    box.hidden = wanted === null || wanted === undefined;
    if (box.hidden) return;
    if (asked === wanted) asked = null;
    const shown = asked ?? wanted;
    less.disabled = shown <= 1;
    if (document.activeElement !== field && field.getRootNode().activeElement !== field) field.value = String(shown);
  };
}

function render({ model, el }) {
  const card = make("section", "gm-card gm-cluster", el);
  card.setAttribute("aria-label", "gearmap cluster");
  const top = make("div", "gm-top", card);
  make("span", "gm-title", top, "gearmap");
  const line = make("span", "gm-status", top);
  const showScale = scaleBox(top, model);
  const where = make("div", "gm-where", card);
  const note = make("div", "gm-note", card);
  note.setAttribute("role", "status");
  const servers = table(card, "job servers", [["job server", ""], ["state", ""], ["named by", ""]]);
  const queues = table(card, "queues", [
    ["queue", ""],
    ["for", ""],
    ["workers", "gm-number"],
    ["queued", "gm-number"],
    ["running", "gm-number"],
  ]);
  const nodes = make("div", "gm-nodes", card);
  const hidden = make("div", "gm-where", card);
  const asOf = make("div", "gm-where gm-asof", card);
  let heard = Date.now();
  let isSeen = true;

  function showTime() {
    const state = model.get("state");
    const isStale = Date.now() - heard > STALE_AFTER;
    card.classList.toggle("gm-stale", isStale);
    setText(asOf, state.as_of ? `as of ${state.as_of}${isStale ? ", no news since" : ""}` : "");
  }

  function show() {
    const state = model.get("state");
    if (!state || !state.servers) return;
    heard = Date.now();
    setText(line, state.line);
    setText(where, state.where);
    setText(note, state.note);
    note.hidden = !state.note;
    showScale(state.wanted);
    showRows(
      servers,
      state.servers.map(([address, up, words, origin]) => [address, [up, words], origin]),
      ["", "state", ""],
    );
    showRows(queues, state.queues, ["", "", "gm-number", "gm-number", "gm-number"]);
    patch(nodes, state.nodes, (node) => node[0], nodeBox, showNode);
    setText(hidden, state.hidden ? `and ${state.hidden}` : "");
    hidden.hidden = !state.hidden;
    showTime();
  }

  function sign() {
    showTime();
    if (isSeen && document.visibilityState === "visible") model.send({ op: "look" });
  }

  const observer = new IntersectionObserver((entries) => {
    isSeen = entries[entries.length - 1].isIntersecting;
    if (isSeen) sign();
  });
  observer.observe(card);
  const timer = setInterval(sign, SIGN_OF_LIFE);
  model.on("change:state", show);
  show();
  return () => {
    clearInterval(timer);
    observer.disconnect();
    model.off("change:state", show);
  };
}

export default { render };
