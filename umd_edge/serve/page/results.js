// Results as elements of the page. Whatever comes from an image, a question or the bundle is shown as
// text, never as markup.

export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

const percent = (probability) =>
  probability > 0 && probability < 0.0005 ? "< 0.1 %" : `${(100 * probability).toFixed(1)} %`;

function bars(items) {
  const list = element("ul", { className: "bars" });
  for (const { label, probability, first, note } of items) {
    const fill = element("span");
    fill.style.width = `${100 * probability}%`;
    const bar = element("span", { className: "bar" }, fill);
    bar.setAttribute("aria-hidden", "true");
    list.append(
      element(
        "li",
        { className: first ? "first" : "" },
        element("span", { className: "label" }, note ? `${label} (${note})` : label),
        bar,
        element("span", { className: "percent" }, percent(probability)),
      ),
    );
  }
  return list;
}

const STATUS = {
  ok: "ok",
  abstain: "abstains: not sure enough",
  out_of_distribution: "unlike what the model knows",
  outside_intended_use: "outside the intended use",
};

function badge(status, reason) {
  const shown = element("p", { className: "reason" });
  const word = STATUS[status] ?? status;
  shown.append(element("span", { className: `badge ${status}` }, word));
  if (reason) shown.append(` ${reason}`);
  return shown;
}

// What must not be used as it is does not look like an answer.
function decided({ status, reason }, text) {
  if (!text) return [badge(status, reason)];
  if (status === "ok") return [element("p", { className: "answer" }, text), badge(status, reason)];
  return [badge(status, reason), element("p", { className: "muted" }, `It would say: ${text}`)];
}

function framesUsed(line) {
  if (!line.frames) return [];
  const { numbers, total } = line.frames;
  const words = `From frames ${numbers.join(", ")} of ${total}`;
  return [element("p", { className: "muted" }, words)];
}

export function answerCard(line, answer, heatButton) {
  const card = element("article", {}, element("h3", {}, answer.question));
  card.append(...decided(answer, answer.answer), ...framesUsed(line));
  if (answer.answer) {
    const first = { label: answer.answer, probability: answer.probability, first: true };
    const others = answer.alternatives.map((item) => ({ ...item, label: item.answer }));
    card.append(bars([first, ...others]));
    card.append(...heatButton(answer.question, { question: answer.question }));
  }
  return card;
}

export function taskCard(line, task, given, heatButton) {
  const card = element("article", {}, element("h3", {}, line.task));
  const ranked = [...line.findings].sort((a, b) => b.probability - a.probability);
  const positive = ranked.filter((finding) => finding.positive).map((finding) => finding.label);
  card.append(...decided(line, ranked.length ? positive.join(", ") || "none positive" : ""));
  card.append(...framesUsed(line));
  if (ranked.length) {
    const marked = (finding) => ({
      ...finding,
      first: finding.positive,
      note: finding.positive && task.multi_label ? "positive" : "",
    });
    card.append(bars(ranked.map(marked)));
    card.append(...heatButton(line.task, { task: line.task, ...given }));
  }
  return card;
}
