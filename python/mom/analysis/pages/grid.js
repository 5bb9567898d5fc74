// The grid of tokens and rounds, which a page of `view` and the widget of `playground` share.
// Texts of tokens reach the document as text nodes only.
const momLab = (() => {
  "use strict";
  const NONE = -2;
  const UNSEEN = new RegExp(
    "[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u061c\\u115f\\u1160\\u1680\\u17b4\\u17b5\\u180b-\\u180e\\u2000-\\u200f" +
    "\\u2028-\\u202f\\u205f-\\u206f\\u3000\\u3164\\ufe00-\\ufe0f\\ufeff\\uffa0\\ufff0-\\ufffb]", "g");
  const MARKS = { " ": "\u00b7", "\n": "\u21b5", "\t": "\u21e5" };

  /** A token with marks for white space, and codes for characters that cannot be seen. */
  function visible(text) {
    if (text === "") return "(empty)";
    const code = (c) => MARKS[c] || "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0");
    return text.replace(/ /g, MARKS[" "]).replace(UNSEEN, code);
  }

  /** An element with attributes, listeners ("onclick"), custom properties ("--part") and children. */
  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name.startsWith("--")) made.style.setProperty(name, value);
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const number = (value, digits) => (value === null ? "\u2013" : value.toFixed(digits).replace("-", "\u2212"));
  const signed = (value, digits) => (value > 0 ? "+" : "") + number(value, digits);
  const percent = (share) => `${share >= 0.1 ? (100 * share).toFixed(1) : (100 * share).toPrecision(2)}\u00a0%`;
  const meter = (part, before) =>
    element("span", { class: "meter", "aria-hidden": "true" },
      element("i", { "--part": Math.max(0, Math.min(1, part)) }),
      before === undefined ? null : element("b", { "--part": Math.max(0, Math.min(1, before)) }));

  /** Reads one entry of a half: which choices a token keeps in a round, and how the router scored all. */
  function entry(facts, half, round, token) {
    const at = round * facts.ids.length + token;
    const cut = (list, size) => list.slice(at * size, (at + 1) * size);
    return {
      index: cut(half.index, half.kept), weight: cut(half.weight, half.kept), scores: cut(half.scores, half.choices),
    };
  }

  const runs = (half, index) => index >= 0 && index < half.modules;

  function choiceName(half, index) {
    if (index === NONE) return "none";
    if (runs(half, index)) return String(index);
    return half.choices - half.modules > 1 && index >= 0 ? `SKIP ${index - half.modules + 1}` : "SKIP";
  }

  function roundName(facts, round) {
    const [block, own] = facts.rounds[round];
    return facts.rounds.some(([b]) => b > 0) ? `block ${block}, round ${own}` : `round ${own}`;
  }

  const tokenName = (facts, token) => (facts.texts ? visible(facts.texts[token]) : String(facts.ids[token]));
  const word = (name) => element("span", { class: "word" }, name);

  function chip(half, index, weight, shadeBy) {
    if (index === NONE) return element("span", { class: "chip none" }, "\u00b7");
    if (!runs(half, index)) return element("span", { class: "chip skip" }, "\u2013");
    const shade = shadeBy === "weight" ? weight : half.modules > 1 ? index / (half.modules - 1) : 0;
    return element("span", { class: shade > 0.52 ? "chip strong" : "chip", "--shade": shade }, String(index));
  }

  /** What a screen reader says of a cell. */
  function spoken(facts, half, round, token) {
    const { index, weight } = entry(facts, half, round, token);
    const kept = index.map((i, k) => (i === NONE ? null : `${choiceName(half, i)} weight ${number(weight[k], 2)}`));
    const forced = isForced(facts, half, round, token) ? "forced: " : "";
    return `${half.name}, ${roundName(facts, round)}: ${forced}${kept.filter((k) => k).join(", ") || "none"}`;
  }

  const isForced = (facts, half, round, token) =>
    (facts.changes || []).some((c) => c.half === half.key && c.round === round && c.token === token);

  function isChanged(facts, half, round, token) {
    const before = facts.before && facts.before.halves.find((other) => other.key === half.key);
    if (!before) return false;
    const sets = [half, before].map((h) =>
      entry(facts, h, round, token).index.map((i) => choiceName(half, i)).filter((n) => n !== "none").sort().join());
    return sets[0] !== sets[1];
  }

  /** What the details panel says of a token, and of its routing in one round. */
  function details(facts, place) {
    const { token, half, round } = place;
    const loss = facts.losses[token];
    const parts = [
      element("h2", {}, word(tokenName(facts, token))),
      element("p", { class: "soft" }, `position ${token}, id ${facts.ids[token]}`),
      element("p", {}, loss === null
        ? "Nothing comes before this token, so it has no loss."
        : `Loss ${number(loss, 3)} nats: the model gave it a probability of ${percent(Math.exp(-loss))}.`),
    ];
    if (!half) return parts;
    const { index, weight, scores } = entry(facts, half, round, token);
    const known = half.scores.filter((score) => score !== null);
    const low = Math.min(0, ...range(known)), high = Math.max(half.softmax ? 1 : 0, ...range(known));
    const rows = scores.map((score, i) => {
      const k = index.indexOf(i);
      const kept = k >= 0;
      return element("tr", { class: kept ? "kept" : null },
        element("td", {}, `${kept ? "\u25cf" : "\u25cb"} ${choiceName(half, i)}`),
        element("td", {}, meter(score === null ? 0 : (score - low) / (high - low || 1))),
        element("td", {}, score === null ? "\u2212\u221e" : number(score, 3)),
        element("td", {}, kept ? number(weight[k], 3) : ""));
    });
    const heads = ["choice", "", "score", "weight"].map((name) =>
      name ? element("th", { scope: "col" }, name) : element("td", { class: "wide" }));
    parts.push(
      element("h3", {}, `${half.name}, ${roundName(facts, round)}`),
      element("table", {}, element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...rows)));
    if (index.some((i) => i === -3)) parts.push(element("p", {}, "\u25cf SKIP is forced; the router has no such choice."));
    return parts;
  }

  function range(values) {
    return values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  }

  function option(value, label) {
    return element("option", { value }, label);
  }

  /** The head: title, sizes, mean loss, and rules that are active. */
  function head(facts) {
    const scored = facts.losses.filter((loss) => loss !== null);
    const mean = scored.reduce((sum, loss) => sum + loss, 0) / scored.length;
    const routers = facts.halves.map((h) => `${h.name.toLowerCase()} keeps ${h.kept} of ${h.choices} choices`);
    const rounds = `${facts.rounds.length} round${facts.rounds.length > 1 ? "s" : ""}`;
    const parts = [`${facts.ids.length} tokens`, rounds, ...routers];
    const old = facts.before ? facts.before.losses.filter((loss) => loss !== null) : [];
    const change = old.length ? mean - old.reduce((sum, loss) => sum + loss, 0) / old.length : 0;
    if (scored.length) parts.push(`mean loss ${number(mean, 3)} nats${facts.before ? ` (change ${signed(change, 4)})` : ""}`);
    const rules = facts.rules.map((rule) => element("p", { class: "rules" }, rule));
    return [element("h1", {}, facts.title), element("p", { class: "soft" }, parts.join(" \u00b7 ")), ...rules];
  }

  /** Selects and sliders; `filters` has their values, and `changed` hears of each change. */
  function controls(facts, filters, changed) {
    const made = [];
    const select = (name, label, ...options) => {
      const box = element("select", { onchange: () => { filters[name] = box.value; changed(); } }, ...options);
      made.push([name, box]);
      return element("label", {}, label, box);
    };
    const group = element("div", { class: "controls", role: "group", "aria-label": "Filters" });
    if (facts.halves.length > 1)
      group.append(select("half", "Half", option("", "both"), ...facts.halves.map((h) => option(h.key, h.name))));
    const blocks = [...new Set(facts.rounds.map(([block]) => block))];
    if (blocks.length > 1)
      group.append(select("block", "Block", option("", "all"), ...blocks.map((b) => option(String(b), String(b)))));
    const modules = facts.halves.map((h) => element("optgroup", { label: h.name },
      ...Array.from({ length: h.modules }, (_, m) => option(`${h.key} ${m}`, `${h.name} ${m}`)),
      option(`${h.key} SKIP`, `${h.name} SKIP`)));
    group.append(select("module", "Module", option("", "any"), ...modules));
    const top = Math.max(0.1, Math.ceil(10 * Math.max(0, ...range(facts.losses.filter((l) => l !== null)).filter(isFinite))) / 10);
    const shown = element("output", {}, "0.0");
    const slider = element("input", { type: "range", min: 0, max: top, step: 0.1, value: 0, oninput: () => {
      filters.loss = Number(slider.value);
      shown.textContent = number(filters.loss, 1);
      changed();
    } });
    group.append(element("label", {}, "Loss at least", slider, shown));
    group.append(select("shade", "Shade", option("module", "module"), option("weight", "weight")));
    const reset = () => {
      for (const [name, box] of made) filters[name] = box.value = box.options[0].value;
      filters.loss = slider.value = 0;
      shown.textContent = "0.0";
      changed();
    };
    group.append(element("button", { type: "button", onclick: reset }, "Show all"));
    return group;
  }

  function legend(facts, filters) {
    const most = facts.halves.reduce((a, b) => (a.modules >= b.modules ? a : b));
    const shades = filters.shade === "weight" ? [0, 0.25, 0.5, 0.75, 1] : null;
    const chips = shades
      ? shades.map((s) => element("span", { class: s > 0.52 ? "chip strong" : "chip", "--shade": s }, String(s).replace("0.", ".")))
      : Array.from({ length: most.modules }, (_, m) => m).filter((m) => most.modules <= 8 || m % Math.ceil(most.modules / 8) === 0)
        .map((m) => chip(most, m, 0, "module"));
    return [shades ? "weight" : "module", element("span", {}, ...chips), element("span", { class: "chip skip" }, "\u2013"), "SKIP"];
  }

  /** Header rows: halves, blocks if there are several, rounds. */
  function tableHead(facts, columns) {
    const several = facts.rounds.some(([block]) => block > 0);
    const depth = several ? 3 : 2;
    const top = element("tr", {}, element("th", { scope: "col", rowspan: depth, class: "token" }, "token"),
      element("th", { scope: "col", rowspan: depth, class: "loss" }, facts.before ? "loss, change" : "loss (nats)"));
    const middle = element("tr", {}), bottom = element("tr", {});
    const count = (same) => columns.filter(same).length;
    columns.forEach(({ half, round, first }, i) => {
      const block = facts.rounds[round][0];
      const startsBlock = i === 0 || columns[i - 1].half !== half || facts.rounds[columns[i - 1].round][0] !== block;
      const start = first || (several && startsBlock) ? "start" : null;
      if (first)
        top.append(element("th", { scope: "colgroup", class: "start", colspan: count((c) => c.half === half) }, `${half.name}, by round`));
      if (startsBlock) {
        const colspan = count((c) => c.half === half && facts.rounds[c.round][0] === block);
        middle.append(element("th", { scope: "colgroup", class: "start", colspan }, `block ${block}`));
      }
      const label = `${half.name}, ${roundName(facts, round)}`;
      bottom.append(element("th", { scope: "col", class: start, "aria-label": label }, String(facts.rounds[round][1])));
    });
    return element("thead", {}, top, ...(several ? [middle] : []), bottom);
  }

  function lossCell(facts, token, top) {
    const loss = facts.losses[token];
    const cell = element("td", { class: "loss", tabindex: -1 }, element("span", { class: "number" }, number(loss, 2)));
    if (facts.before) {
      const change = loss === null ? null : loss - facts.before.losses[token];
      const shown = change === null || Math.abs(change) < 0.0005 ? "" : signed(change, 3);
      cell.append(element("span", { class: "delta" }, shown));
      cell.append(loss === null ? meter(0) : meter(loss / top, facts.before.losses[token] / top));
      cell.setAttribute("aria-label", `loss ${number(loss, 2)}${shown ? `, change ${shown}` : ""}`);
    } else {
      cell.append(meter(loss === null ? 0 : loss / top));
      cell.setAttribute("aria-label", `loss ${number(loss, 2)}`);
    }
    return cell;
  }

  /**
   * Draws everything into `root`. `hooks.place` hears which token and half-round has the focus, and `hooks.key` gets
   * keys first. Returns `update(facts)`, the panel `side` and the line `keys` below it.
   */
  function lab(root, given, hooks = {}) {
    let facts = given, columns = [], rows = [], strip = [], marked = [];
    let places = new Map(), pointed = null;
    const filters = { half: "", block: "", module: "", loss: 0, shade: "module" };
    const current = { token: Math.min(1, facts.ids.length - 1), column: 2 };
    const top = element("header", {}, ...head(facts));
    const text = element("div", { class: "text", role: "group", "aria-label": "The text, shaded by loss" });
    const frame = element("div", { class: "frame" });
    const panel = element("div", {});
    const side = element("aside", { class: "side", tabindex: 0, "aria-label": "Details" }, panel);
    const status = element("div", { class: "status soft", role: "status" });
    const key = element("span", { class: "legend" });
    const keys = element("p", { class: "soft" }, "Point at a cell for its scores, or move with the arrow keys, Home, End, Page Up and Page Down.");
    const bar = controls(facts, filters, () => { build(); });
    bar.append(key);
    root.classList.add("mom-lab");
    root.replaceChildren(top, text, bar, element("div", { class: "body" }, frame, side), status, keys);

    const place = () => {
      const { half = null, round = null } = columns[current.column - 2] || {};
      return { token: current.token, half, round };
    };
    const show = (where) => {
      const half = where.half && facts.halves.find((h) => h.key === where.half.key);
      panel.replaceChildren(...details(facts, { ...where, half }));
    };

    function build() {
      const hadFocus = frame.contains(document.activeElement);
      const before = columns.length ? place() : null;
      columns = [];
      for (const half of facts.halves) {
        if (filters.half && filters.half !== half.key) continue;
        const own = facts.rounds.map((_, round) => round).filter((r) => !filters.block || String(facts.rounds[r][0]) === filters.block);
        own.forEach((round, i) => columns.push({ half, round, first: i === 0 }));
      }
      if (before && before.half) {
        const again = columns.findIndex((c) => c.half.key === before.half.key && c.round === before.round);
        current.column = again < 0 ? 0 : again + 2;
      }
      const losses = [...facts.losses, ...(facts.before ? facts.before.losses : [])].filter((l) => l !== null);
      const most = Math.max(1e-9, ...losses);
      rows = facts.ids.map((_, token) => [
        element("th", { scope: "row", tabindex: -1 },
          element("span", { class: "place" }, String(token)), word(tokenName(facts, token))),
        lossCell(facts, token, most),
        ...columns.map(({ half, round, first }) => roundCell(half, round, token, first)),
      ]);
      const table = element("table", { class: "grid", role: "grid", "aria-label": "Modules of each token in each round" },
        tableHead(facts, columns), element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells))));
      frame.replaceChildren(table);
      places = new Map(rows.flatMap((row, token) => row.map((cell, column) => [cell, { token, column }])));
      marked = [];
      strip = facts.ids.map((_, token) => element("span", {
        "--loss": facts.losses[token] === null ? 0 : facts.losses[token] / most,
        onclick: () => focus(token, current.column),
      }, facts.texts ? visible(facts.texts[token]).replaceAll(MARKS[" "], " ").replaceAll(MARKS["\n"], MARKS["\n"] + "\n") : facts.ids[token] + " "));
      text.replaceChildren(...strip);
      key.replaceChildren(...legend(facts, filters));
      paint();
      mark();
      if (hadFocus) rows[current.token][current.column].focus({ preventScroll: true });
    }

    function roundCell(half, round, token, first) {
      const { index, weight } = entry(facts, half, round, token);
      const classes = [first ? "start" : "", isForced(facts, half, round, token) ? "forced" : "",
        isChanged(facts, half, round, token) ? "changed" : ""].filter((name) => name).join(" ");
      const label = spoken(facts, half, round, token);
      return element("td", { class: classes || null, tabindex: -1, "aria-label": label },
        ...index.map((i, k) => chip(half, i, weight[k], filters.shade)));
    }

    /** Fades what the filters leave out, and counts the rest. */
    function paint() {
      const [wantedHalf, wanted] = filters.module.split(" ");
      let cells = 0, tokens = 0;
      rows.forEach((row, token) => {
        const out = filters.loss > 0 && !(facts.losses[token] >= filters.loss);
        tokens += out ? 0 : 1;
        row[0].parentNode.classList.toggle("faded", out);
        strip[token].classList.toggle("faded", out);
        columns.forEach(({ half, round }, c) => {
          const { index } = entry(facts, half, round, token);
          const found = index.map((i) => half.key === wantedHalf && i !== NONE && (wanted === "SKIP" ? !runs(half, i) : String(i) === wanted));
          const any = found.some((f) => f);
          cells += any && !out ? 1 : 0;
          [...row[c + 2].children].forEach((one, k) => {
            one.classList.toggle("found", found[k] && !out);
            one.classList.toggle("faded", wanted !== undefined && !found[k]);
          });
        });
      });
      const said = [];
      if (wanted !== undefined) {
        const name = facts.halves.find((h) => h.key === wantedHalf).name;
        const all = tokens * columns.filter((c) => c.half.key === wantedHalf).length;
        said.push(`${name} ${wanted}: ${cells} of ${all} cells shown`);
      }
      if (filters.loss > 0) said.push(`${tokens} of ${rows.length} tokens have a loss of at least ${number(filters.loss, 1)}`);
      status.textContent = said.join("; ");
    }

    function mark() {
      const row = rows[current.token], cell = row[current.column];
      for (const one of marked) one.classList.remove("here");
      for (const one of marked) if (one.tabIndex === 0) one.tabIndex = -1;
      marked = [row[0].parentNode, strip[current.token], cell];
      for (const one of marked) one.classList.add("here");
      cell.tabIndex = 0;
      show(place());
      if (hooks.place) hooks.place(place());
    }

    function focus(token, column) {
      rows[token][column].focus();
    }

    const find = (target) => places.get(target.closest("td, th")) || null;

    const PAGE = 10;
    const STEPS = {
      ArrowUp: (t, c) => [t - 1, c], ArrowDown: (t, c) => [t + 1, c], ArrowLeft: (t, c) => [t, c - 1],
      ArrowRight: (t, c) => [t, c + 1], PageUp: (t, c) => [t - PAGE, c], PageDown: (t, c) => [t + PAGE, c],
      Home: (t, c, all) => [all ? 0 : t, 0], End: (t, c, all) => [all ? Infinity : t, Infinity],
    };
    frame.addEventListener("keydown", (event) => {
      if (hooks.key && hooks.key(event, place())) return event.preventDefault();
      const step = STEPS[event.key];
      if (!step || event.altKey || event.metaKey) return undefined;
      event.preventDefault();
      event.stopPropagation();
      const [token, column] = step(current.token, current.column, event.ctrlKey);
      const within = (value, size) => Math.max(0, Math.min(size - 1, value));
      return focus(within(token, rows.length), within(column, rows[0].length));
    });
    frame.addEventListener("focusin", (event) => {
      const found = find(event.target);
      if (!found || (found.token === current.token && found.column === current.column)) return;
      Object.assign(current, found);
      mark();
    });
    frame.addEventListener("click", (event) => {
      const found = find(event.target);
      if (found) focus(found.token, found.column);
    });
    // A browser also sends this event, without a movement, when the table below a resting mouse is drawn anew.
    frame.addEventListener("mousemove", (event) => {
      const found = find(event.target);
      if (!found || found === pointed || !(event.movementX || event.movementY)) return;
      pointed = found;
      const { half = null, round = null } = columns[found.column - 2] || {};
      show({ token: found.token, half, round });
    });
    frame.addEventListener("mouseleave", () => { pointed = null; show(place()); });

    build();
    const update = (changed) => {
      facts = changed;
      top.replaceChildren(...head(facts));
      build();
    };
    return { update, side, keys };
  }

  return { choiceName, element, entry, lab, meter, number, percent, roundName, runs, signed, tokenName, visible, word };
})();
