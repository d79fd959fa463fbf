// Everything here is a convenience: each page says all it has to say without it.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("player");
  const cast = document.getElementById("cast");
  if (box && cast && window.AsciinemaPlayer) {
    // A page opened from file:// may not fetch, so the recording stands in the page.
    const player = AsciinemaPlayer.create({ data: JSON.parse(cast.textContent) }, box, {
      fit: "width",
      idleTimeLimit: 2,
      poster: "npt:0:01",
      theme: "kiln",
      terminalFontFamily: "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace",
    });
    box.dataset.state = "ready";
    for (const name of ["playing", "pause", "ended"]) {
      player.addEventListener(name, () => { box.dataset.state = name; });
    }
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(button.dataset.copy);
        button.textContent = "Copied";
      } catch {
        // No clipboard here: select the command, so that one key copies it.
        getSelection().selectAllChildren(button.previousElementSibling);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  // What went wrong stands at the end of a log.
  const toTheEnd = (details) => {
    const log = details.querySelector("pre.log");
    if (details.open && log) log.scrollTop = log.scrollHeight;
  };
  for (const details of document.querySelectorAll("details")) {
    toTheEnd(details);
    details.addEventListener("toggle", () => toTheEnd(details));
  }

  const failures = [...document.querySelectorAll(".failure")];
  let at = -1;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || failures.length === 0) return;
    if (event.target.closest?.("input, textarea, .player")) return;
    if (event.key === "n") at = Math.min(at + 1, failures.length - 1);
    else if (event.key === "p") at = Math.max(at - 1, 0);
    else return;
    failures[at].focus();
    failures[at].scrollIntoView({ block: "start" });
  });
  if (failures.length > 0) document.body.classList.add("has-failures");
});
