// Numbers of files by year, month or day, as bars; a click on one leaves only the files of that time.

import { ask, byId, button, element } from "./elements.js";

const MOST_BARS = 90;  // with more, times without files are left out

const pad = (number) => String(number).padStart(2, "0");

// The time after a period such as "2024", "2024-05" or "2024-05-31", in the same form.
function following(period) {
  const [year, month, day] = period.split("-").map(Number);
  if (day) {
    const next = new Date(Date.UTC(year, month - 1, day + 1));
    return next.toISOString().slice(0, 10);
  }
  if (month) return month === 12 ? `${year + 1}-01` : `${year}-${pad(month + 1)}`;
  return String(year + 1).padStart(4, "0");
}

// First day of a period, as the date fields have it.
const firstDay = (period) => `${period}-01-01`.slice(0, 10);

function named(period) {
  const [year, month, day] = period.split("-").map(Number);
  if (!month) return String(year);
  const style = day ? { day: "numeric", month: "short", year: "numeric" } : { month: "short", year: "numeric" };
  return new Date(year, month - 1, day || 1).toLocaleDateString(undefined, style);
}

// All periods from the first to the last, those without files too, if they are not too many.
function filled(periods) {
  if (periods.length < 2) return periods;
  const counts = new Map(periods);
  const last = periods.at(-1)[0];
  const all = [];
  for (let period = periods[0][0]; period <= last; period = following(period)) {
    all.push([period, counts.get(period) ?? 0]);
    if (all.length > MOST_BARS) return periods;
  }
  return all;
}

let shown = null;  // the filters, and the number of files, for which the bars are drawn

// choose(after, before) is called with the first day of a period and the first day after it. Returns the numbers of files
// by kind, or null if nothing has changed.
export async function showTimeline(filters, numFiles, choose) {
  const key = JSON.stringify([filters, numFiles]);
  if (key === shown) return null;
  const { unit, periods, kinds } = await ask("timeline", filters);
  shown = key;
  const timeline = byId("timeline");
  timeline.hidden = periods.length < 2;
  if (timeline.hidden) return kinds;
  const bars = filled(periods);
  timeline.style.setProperty("--bars", bars.length);
  const most = Math.max(...bars.map(([, count]) => count));
  const buttons = bars.map(([period, count]) => barOf(period, count, most, choose));
  buttons.find((bar) => !bar.disabled).tabIndex = 0;
  timeline.querySelector("div").replaceChildren(...buttons);
  const ends = [bars[0][0], bars.at(-1)[0]].map((period) => element("span", {}, named(period)));
  timeline.querySelector("p").replaceChildren(ends[0], element("span", {}, `files by ${unit}`), ends[1]);
  return kinds;
}

function barOf(period, count, most, choose) {
  const title = `${named(period)}: ${count} ${count === 1 ? "file" : "files"}`;
  const bar = button({ title, disabled: !count, tabIndex: -1, aria: { label: title } }, element("i"));
  bar.firstChild.style.height = count ? `${Math.max(8, 100 * count / most)}%` : "0";
  bar.onclick = () => choose(firstDay(period), firstDay(following(period)));
  return bar;
}

// One tab stop for all bars; arrows lead to the others.
byId("timeline").addEventListener("keydown", (event) => {
  const bars = [...event.currentTarget.querySelectorAll("button:enabled")];
  const place = bars.indexOf(document.activeElement);
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  const next = bars[place + steps[event.key]];
  if (!next) return;
  event.preventDefault();
  bars[place].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
