// Asks the server that this page came from, on each target chosen, and shows answers as they come.
import { current, dataUrl, listen } from "./picture.js";

const $ = (id) => document.getElementById(id);
const TEXTS = {
  vqa: ["Question", "For example: what color is the circle?"],
  itm: ["Descriptions", "One per line; the best is shown first."],
};
let models = {};

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const task = () => document.querySelector("input[name=task]:checked").value;
const chosen = () => [...document.querySelectorAll("input[name=target]:checked")].map((one) => one.value);

async function ask(path, options = {}) {
  const token = $("token").value;
  const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) $("token-row").hidden = false;
  if (!response.ok) {
    const problem = await response.json().catch(() => null);
    throw new Error(problem ? problem.error.message : `The server answers ${response.status}.`);
  }
  return response;
}

async function describe() {
  const found = await (await ask("/server.json")).json();
  models = Object.fromEntries(Object.entries(found.models).map(([id, target]) => [target, id]));
  for (const input of document.querySelectorAll("input[name=task]")) {
    input.disabled = !found.tasks.includes(input.value);
  }
  const targets = Object.keys(models);
  $("targets").replaceChildren(
    ...targets.map((target, index) => {
      const label = element("label");
      const box = element("input");
      Object.assign(box, { type: "checkbox", name: "target", value: target, checked: index < 2 });
      label.append(box, ` ${target}`);
      return label;
    }),
  );
}

function card(target) {
  const made = element("article", undefined, "card");
  const place = { answer: element("p", "", "answer"), facts: element("p", "", "facts") };
  made.append(element("h3", target), place.answer, place.facts);
  $("cards").append(made);
  return place;
}

function facts(found, begin, first) {
  const parts = [];
  if (found.confidence !== undefined) parts.push(`confidence ${found.confidence.toFixed(3)}`);
  if (first) parts.push(`first word ${(first - begin).toFixed(0)} ms`);
  parts.push(`server ${found.milliseconds.toFixed(0)} ms`, `all ${(performance.now() - begin).toFixed(0)} ms`);
  if (found.warning) parts.push(found.warning);
  return parts.join(" · ");
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function generate({ answer, facts: line }, target, url, question, begin) {
  let first = 0;
  const content = [{ type: "image_url", image_url: { url } }];
  if (question) content.push({ type: "text", text: question });
  const body = JSON.stringify({ model: models[target], stream: true, messages: [{ role: "user", content }] });
  const response = await ask("/v1/chat/completions", {
    method: "POST", body, headers: { "Content-Type": "application/json" },
  });
  for await (const event of events(response)) {
    if (event.error) throw new Error(event.error.message);
    const words = event.choices[0].delta.content;
    if (words && !first) first = performance.now();
    answer.append(words || "");
    if (event.blip_edge) line.textContent = facts(event.blip_edge, begin, first);
  }
  return `${target}: ${answer.textContent}`;
}

async function match({ answer, facts: line }, target, url, text, begin) {
  const texts = text.split("\n").map((one) => one.trim()).filter(Boolean);
  const response = await ask("/match", {
    method: "POST",
    body: JSON.stringify({ image: url, text: texts, target }),
    headers: { "Content-Type": "application/json" },
  });
  const found = await response.json();
  const table = element("table");
  const head = table.createTHead().insertRow();
  for (const name of ["Description", "Probability", "Cosine"]) {
    const cell = element("th", name);
    cell.scope = "col";
    head.append(cell);
  }
  const rows = table.createTBody();
  for (const one of found.matches) {
    const row = rows.insertRow();
    const cell = element("th", one.text);
    cell.scope = "row";
    row.append(cell, element("td", one.probability.toFixed(3)), element("td", one.cosine.toFixed(3)));
  }
  answer.replaceWith(table);
  line.textContent = facts(found, begin, 0);
  return `${target}: ${found.matches[0].text}, ${found.matches[0].probability.toFixed(3)}`;
}

async function answerOn(target, url, text) {
  const place = card(target);
  const begin = performance.now();
  try {
    if (task() === "itm") return await match(place, target, url, text, begin);
    return await generate(place, target, url, task() === "vqa" && text, begin);
  } catch (error) {
    place.facts.append(element("span", error.message, "bad"));
    return `${target}: ${error.message}`;
  }
}

async function run(event) {
  event.preventDefault();
  const say = (text) => ($("status").textContent = text);
  if ($("targets").children.length === 0) {
    await describe().catch((error) => say(error.message));
    if ($("targets").children.length === 0) return;
  }
  const text = $("text").value.trim();
  if (!current()) return say("Choose a picture first.");
  if (task() !== "caption" && !text) return say(`${$("text-label").textContent}: write something first.`);
  if (!chosen().length) return say("Choose a target first.");
  $("cards").replaceChildren();
  $("run").disabled = true;
  say("Working …");
  try {
    const url = await dataUrl(current());
    say((await Promise.all(chosen().map((target) => answerOn(target, url, text)))).join("; "));
  } finally {
    $("run").disabled = false;
  }
}

function choose() {
  const [label, help] = TEXTS[task()] || ["", ""];
  $("text-row").hidden = !label;
  $("text-label").textContent = label;
  $("text-help").textContent = help;
}

listen();
choose();
$("form").addEventListener("change", choose);
$("form").addEventListener("submit", run);
describe().catch((error) => ($("status").textContent = error.message));
