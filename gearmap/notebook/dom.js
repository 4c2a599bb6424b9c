// What the cards are made with. It stands before the source of each card, which sees these functions as its own.

function make(tag, name, parent, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Make the children of `parent` those of `items`, patched by key.
function patch(parent, items, keyOf, create, update) {
  const old = new Map(Array.from(parent.children, (node) => [node.dataset.key, node]));
  items.forEach((item, at) => {
    const key = String(keyOf(item, at));
    let node = old.get(key);
    if (node) {
      old.delete(key);
    } else {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (parent.children[at] !== node) parent.insertBefore(node, parent.children[at] || null);
  });
  for (const node of old.values()) node.remove();
}

