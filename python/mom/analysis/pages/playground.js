// The widget of the playground: the grid, a chooser for the cell at hand, and what its forced choices change.
// It follows grid.js in one module. Python computes everything; each message gets a whole new state as its answer.
const { element, meter, number, percent, roundName, signed, tokenName, word } = momLab;

function render({ model, el }) {
  const before = model.get("facts");
  const root = element("div", { class: "mom-playground", "data-lm-suppress-shortcuts": "true" });
  const chooser = element("div", {}), next = element("div", { class: "next" });
  const error = element("div", { class: "error", role: "alert" });
  const list = element("ul", { class: "changes" });
  const code = element("pre", { tabindex: 0, "aria-label": "The forced choices as Python code" });
  const reset = element("button", { type: "button", onclick: () => ask({ do: "reset" }) }, "Reset");
  const copy = element("button", { type: "button", onclick: copyCode }, "Copy");
  let here = null, turn = 0, waiting = null;

  const state = () => model.get("state");
  const merged = () => ({ ...before, losses: state().losses, halves: state().halves, changes: state().changes, before });
  const same = (change, place) =>
    place.half && change.half === place.half.key && change.round === place.round && change.token === place.token;
  const forced = (place) => (state().changes.find((change) => same(change, place)) || { to: [] }).to;

  /** Sends a message. Python answers by setting the state. */
  function ask(message) {
    clearTimeout(waiting);
    turn += 1;
    root.setAttribute("aria-busy", "true");
    model.send({ ...message, shown: here ? here.token : 0, turn });
  }

  const at = (place) => ({ half: place.half.key, round: place.round, token: place.token });

  /** Adds a choice to those that are forced, or removes it. The oldest one goes if there are too many. */
  function toggle(place, choice) {
    const now = forced(place);
    const to = now.includes(choice) ? now.filter((one) => one !== choice) : [...now, choice].slice(-place.half.kept);
    ask(to.length ? { do: "force", ...at(place), to } : { do: "free", ...at(place) });
  }

  function key(event, place) {
    if (!place.half || event.ctrlKey || event.altKey || event.metaKey) return false;
    const pressed = event.key.toLowerCase();
    if (/^[0-9]$/.test(pressed) && Number(pressed) < place.half.modules) toggle(place, Number(pressed));
    else if (pressed === "s") toggle(place, "SKIP");
    else if (pressed === "f" || pressed === "delete" || pressed === "backspace") ask({ do: "free", ...at(place) });
    else if (pressed === "enter" && chooser.querySelector("button")) chooser.querySelector("button").focus();
    else return false;
    return true;
  }

  function showChooser() {
    if (!here.half) {
      chooser.replaceChildren(element("p", { class: "soft" }, "Choose a cell of a round to force a module there."));
      return;
    }
    const focused = chooser.contains(document.activeElement) ? [...chooser.querySelectorAll("button")].indexOf(document.activeElement) : -1;
    const now = forced(here), place = here;
    const button = (choice) => element("button", {
      type: "button", "aria-pressed": String(now.includes(choice)), onclick: () => toggle(place, choice),
    }, String(choice));
    const free = element("button", {
      type: "button", "aria-pressed": String(now.length === 0), onclick: () => ask({ do: "free", ...at(place) }),
    }, "free");
    const label = `Force ${here.half.name}, ${roundName(before, here.round)}, of token ${here.token}`;
    const modules = Array.from({ length: here.half.modules }, (_, m) => m);
    const most = here.half.kept > 1 ? `At most ${here.half.kept} choices. ` : "";
    chooser.replaceChildren(
      element("h3", {}, `Force ${here.half.name.toLowerCase()}, ${roundName(before, here.round)}, of `,
        word(tokenName(before, here.token))),
      element("div", { class: "choose", role: "group", "aria-label": label }, ...[...modules, "SKIP"].map(button), free),
      element("p", { class: "soft" }, `${most}Keys in the grid: 0 to 9, S for SKIP, F for free, Enter to come here.`));
    if (focused >= 0) chooser.querySelectorAll("button")[focused]?.focus();
  }

  function showNext() {
    const rows = state().next, most = Math.max(...rows.flatMap((row) => [row.before, row.after]));
    const facts = { ids: rows.map((row) => row.id), texts: before.texts && rows.map((row) => row.text) };
    const heads = ["token", "", "before", "after"].map((name) =>
      name ? element("th", { scope: "col" }, name) : element("td", { class: "wide" }));
    next.replaceChildren(
      element("h3", {}, "Next token after ", word(tokenName(before, state().shown))),
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows.map((row, i) =>
        element("tr", {}, element("td", {}, word(tokenName(facts, i))),
          element("td", {}, meter(row.after / most, row.before / most)),
          element("td", {}, percent(row.before)), element("td", {}, percent(row.after)))))),
      element("p", { class: "soft" }, "Bars: after. Lines: before."));
  }

  function showChanges() {
    const inside = list.contains(document.activeElement);
    list.replaceChildren(...state().changes.map((change) => {
      const half = before.halves.find((h) => h.key === change.half);
      const what = `${half.name}, ${roundName(before, change.round)}, token ${change.token} `;
      const remove = () => ask({ do: "free", half: change.half, round: change.round, token: change.token });
      return element("li", {},
        element("button", { type: "button", onclick: remove, "aria-label": `Remove ${what}` }, "Remove"),
        element("span", {}, what, word(tokenName(before, change.token)), ` \u2192 ${change.to.join(", ")}`));
    }));
    if (!list.children.length) list.append(element("li", { class: "soft" }, "None yet."));
    if (inside) (list.querySelector("button") || reset).focus();
    reset.disabled = !state().changes.length;
    code.textContent = state().code;
  }

  function copyCode() {
    const selection = getSelection();
    selection.selectAllChildren(code);
    const done = navigator.clipboard ? navigator.clipboard.writeText(code.textContent) : Promise.reject();
    done.then(() => { copy.textContent = "Copied"; }, () => { copy.textContent = "Selected"; });
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  }

  function moved(place) {
    const other = here !== null && place.token !== here.token;
    here = place;
    showChooser();
    if (!other) return;
    clearTimeout(waiting);
    waiting = setTimeout(() => ask({ do: "look" }), 120);
  }

  const lab = momLab.lab(root, merged(), { place: moved, key });
  lab.side.append(chooser, error, next);
  lab.keys.append(" A thick frame marks a forced choice. Underlined modules differ from those before.");
  root.append(element("section", { class: "foot" },
    element("h2", {}, "Forced choices", reset), list, element("h2", {}, "As Python", copy), code));
  el.append(root);
  el.addEventListener("keydown", (event) => event.stopPropagation());

  function draw() {
    root.setAttribute("aria-busy", "false");
    lab.update(merged());
    showChooser();
    showNext();
    showChanges();
    error.textContent = state().error;
  }
  model.on("change:state", draw);
  draw();
  return () => { model.off("change:state", draw); clearTimeout(waiting); };
}

export default { render };
