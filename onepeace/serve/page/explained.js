for (const line of document.querySelectorAll(".time")) {
  const sound = line.parentElement.querySelector("audio"), head = line.querySelector("i");
  const seconds = Number(line.dataset.seconds);
  const move = () => { head.style.left = `${100 * Math.min(1, sound.currentTime / seconds)}%`; };
  sound.addEventListener("timeupdate", move);
  line.addEventListener("click", (event) => {
    const box = line.getBoundingClientRect();
    sound.currentTime = seconds * (event.clientX - box.left) / box.width;
    move();
    sound.play();
  });
}
