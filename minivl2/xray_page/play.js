// The question line of `minivl2 play`: a picture goes to /ask, and what comes back is shown line by line.
"use strict";

const form = $("ask"), drop = $("drop"), file = $("file"), preview = $("preview"), note = $("note"), live = $("live");
let chosen = null;      // the picture's file
let asking = null;      // to stop the answer under way

function tell(text, wrong = false) {
  note.textContent = text;
  note.classList.toggle("wrong", wrong);
}

function choose(picked) {
  if (!picked) return;
  chosen = picked;
  const image = preview.querySelector("img");
  if (image.src) URL.revokeObjectURL(image.src);
  drawBoxes(preview, []);
  live.textContent = "";
  preview.hidden = false;
  image.onerror = () => { preview.hidden = true; };      // the server will say what is wrong with it
  image.src = URL.createObjectURL(picked);
  tell(picked.name);
}

file.onchange = () => choose(file.files[0]);
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {           // anywhere on the page, or the browser would open the file
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files[0]);
  });
}

function show(event) {
  if (event.note) tell(event.note);
  if (event.wrong) tell(event.wrong, true);
  if (event.piece) {
    live.textContent += event.piece;
    drawBoxes(preview, event.boxes);
  }
  if (event.page) {
    const main = new DOMParser().parseFromString(event.page, "text/html").querySelector("main");
    document.querySelector("main").replaceWith(main);
    tell("Every step of this answer is below.");
    return xray(main);
  }
}

async function ask(question) {
  const address = `/ask?${new URLSearchParams({ question, name: chosen ? chosen.name : "" })}`;
  const reply = await fetch(address, { method: "POST", body: chosen ?? "", signal: asking.signal });
  if (!reply.ok) throw new Error(await reply.text());
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) await show(JSON.parse(line));
  }
}

form.onsubmit = async (event) => {
  event.preventDefault();
  if (asking) return;
  asking = new AbortController();
  live.textContent = "";
  drawBoxes(preview, []);
  tell("Asking …");
  $("go").disabled = true;
  $("stop").hidden = false;
  try {
    await ask($("question").value);
  } catch (problem) {
    tell(problem.name === "AbortError" ? "Stopped." : `The answer broke off: ${problem.message}`, problem.name !== "AbortError");
  }
  asking = null;
  $("go").disabled = false;
  $("stop").hidden = true;
};
$("stop").onclick = () => asking?.abort();
