// Runs once in each list of cards, with the list as `element`.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button && "like" in button.dataset) trigger("pick", { id: Number(button.dataset.like) });
  if (button && "drop" in button.dataset) trigger("drop");
});
// One player at a time. Events of media do not bubble, so they are caught on the way down.
element.addEventListener("play", (event) => {
  for (const other of element.querySelectorAll("audio, video")) if (other !== event.target) other.pause();
}, true);
