"use strict";
// The pop-up of a token, by mouse, finger or keyboard. Text of prompts and models only ever enters as textContent.
(() => {
  const signals = JSON.parse(document.getElementById("signals").textContent);
  const popup = document.getElementById("popup");

  const nats = (value) => (value === null ? "–" : value.toFixed(2).replace(/^-(?!0\.00$)/, "−").replace(/^-/, ""));
  const share = (value) => (value === null ? "–" : `${nats(value)} (${Math.round(100 * Math.exp(value))} %)`);
  const visible = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function row(name, cells, className) {
    const made = element("tr", undefined, className);
    cells.forEach((cell, index) => made.append(element(name, cell, index ? "n" : "")));
    return made;
  }

  function table(head, rows, className) {
    const made = element("table", undefined, className);
    made.append(row("th", head), ...rows);
    return made;
  }

  function fill(signal) {
    const [text, student, teacher, divergence, studentTop, teacherTop] = signal;
    const ratio = student === null || teacher === null ? null : teacher - student;
    const facts = [row("td", ["this token", share(student), share(teacher)])];
    if (ratio !== null) facts.push(row("td", ["log q − log p", "", nats(ratio)]));
    if (divergence !== null) facts.push(row("td", ["reverse KL", "", nats(divergence)]));
    popup.replaceChildren(element("h4", `“${visible(text)}”`), table(["", "student, log p", "teacher, log q"], facts));
    for (const [title, top] of [["student's top", studentTop], ["teacher's top", teacherTop]]) {
      if (!top.length) continue;
      const rows = top.map(([other, p, q]) => row("td", [visible(other), share(p), share(q)], other === text ? "written" : ""));
      popup.append(table([title, "", ""], rows, "top"));
    }
  }

  function place(token) {
    const box = token.getClientRects()[0];
    const width = popup.offsetWidth, height = popup.offsetHeight;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8));
    const below = box.bottom + 6, above = box.top - height - 6;
    const top = below + height > window.innerHeight && above >= 0 ? above : below;
    popup.style.left = `${left + window.scrollX}px`;
    popup.style.top = `${top + window.scrollY}px`;
  }

  function show(token) {
    const trajectory = token.parentElement;
    const index = Array.prototype.indexOf.call(trajectory.children, token);
    fill(signals[trajectory.dataset.trajectory][index]);
    popup.hidden = false;
    token.setAttribute("aria-describedby", "popup");
    place(token);
  }

  const hide = () => { popup.hidden = true; };

  for (const trajectory of document.querySelectorAll(".trajectory")) {
    const at = (event) => event.target.closest(".t");
    trajectory.addEventListener("mouseover", (event) => at(event) && show(at(event)));
    trajectory.addEventListener("mouseleave", hide);
    trajectory.addEventListener("focusin", (event) => at(event) && show(at(event)));
    trajectory.addEventListener("focusout", hide);
    trajectory.addEventListener("scroll", hide);
    trajectory.addEventListener("keydown", (event) => {
      const token = at(event);
      const next = { ArrowRight: token?.nextElementSibling, ArrowLeft: token?.previousElementSibling }[event.key];
      if (event.key === "Escape") hide();
      if (!next) return;
      event.preventDefault();
      token.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  for (const choice of document.querySelectorAll("input[name=signal]")) {
    choice.addEventListener("change", () => { choice.closest(".tokens").dataset.signal = choice.value; });
  }
  for (const link of document.querySelectorAll('td.token a[href^="#t"]')) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const token = document.getElementById(link.hash.slice(1));
      token.scrollIntoView({ block: "center" });
      token.focus({ preventScroll: true });
    });
  }
})();
