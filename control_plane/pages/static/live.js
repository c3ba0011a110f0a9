// Keeps the marked parts of the page current: whatever the event stream says, fetch them again and swap what changed.
"use strict";

const parts = [...document.querySelectorAll("[data-live]")];
const badge = document.querySelector("[data-live-state]");
const shown = new Map();
let timer = 0, busy = false, again = false;

function say(state) {
  if (badge.textContent === state) return;
  badge.textContent = state;
  badge.dataset.liveState = state;
}

function swap(part, text) {
  if (shown.get(part) === text) return;
  shown.set(part, text);
  const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
  const folds = [...part.querySelectorAll("details[id]")].map((fold) => [fold.id, fold.open]);
  const places = [...part.querySelectorAll("[data-scroll][id]")].map((box) => [box.id, box.scrollLeft, box.scrollTop]);
  part.innerHTML = text;
  for (const [id, open] of folds) document.getElementById(id)?.toggleAttribute("open", open);
  for (const [id, left, top] of places) document.getElementById(id)?.scrollTo(left, top);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function refresh() {
  if (busy) return void (again = true);
  busy = true;
  try {
    await Promise.all(parts.map(async (part) => {
      const answer = await fetch(part.dataset.live, { cache: "no-store" });
      if (answer.ok) swap(part, await answer.text());
      else if (answer.status === 401) location.reload();
    }));
  } catch { say("offline"); } // the stream's own error handler brings it back
  busy = false;
  if (again) { again = false; soon(); }
}

function soon() {
  timer ||= setTimeout(() => { timer = 0; refresh(); }, 250); // not put off by what comes meanwhile
}

function listen() {
  const stream = new EventSource(badge.dataset.stream);
  stream.onopen = () => { say("live"); soon(); };
  stream.addEventListener("change", soon);
  stream.onerror = () => {
    say("offline");
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 3000); // refused, so it will not retry by itself
  };
}

listen();
setInterval(() => { if (badge.textContent === "live" && !document.hidden) soon(); }, 15000); // "40 s ago" grows old
