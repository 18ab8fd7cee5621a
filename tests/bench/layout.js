// SPDX-License-Identifier: GPL-2.0-only
//
// Appended to the report's page by scripts/report-check.sh, which shows it in a frame of some
// width: what cannot be read becomes the text of the page around it.
(() => {
	const wrong = [];
	const inside = (a, b) =>
		a.left >= b.left - 1 && a.right <= b.right + 1 &&
		a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
	const apart = (a, b) =>
		a.right <= b.left + 1 || b.right <= a.left + 1 ||
		a.bottom <= b.top + 2 || b.bottom <= a.top + 2;

	document.querySelectorAll("details").forEach((d) => { d.open = true; });
	if (document.documentElement.scrollWidth > window.innerWidth)
		wrong.push(`the page is ${document.documentElement.scrollWidth} wide`);
	const charts = document.querySelectorAll("svg");
	charts.forEach((svg, number) => {
		const frame = svg.getBoundingClientRect();
		const texts = [...svg.querySelectorAll("text")]
			.map((t) => [t.textContent.trim(), t.getBoundingClientRect()]);
		const lines = [...svg.querySelectorAll("polyline")].map((l) => l.getBoundingClientRect());

		texts.forEach(([text, box], i) => {
			if (!inside(box, frame))
				wrong.push(`chart ${number}: "${text}" is cut off`);
			if (Math.max(box.height, box.width) < 9)
				wrong.push(`chart ${number}: "${text}" is too small`);
			texts.slice(i + 1).filter(([, other]) => !apart(box, other)).forEach(([other]) =>
				wrong.push(`chart ${number}: "${text}" lies on "${other}"`));
			// By the frame of a line: all of it is in the plot, where there is no text.
			lines.filter((l) => l.height > 2 && l.width > 2 && !apart(box, l)).forEach(() =>
				wrong.push(`chart ${number}: "${text}" lies on a line`));
		});
	});
	window.parent.document.body.textContent =
		`LAYOUT ${window.innerWidth} ${charts.length} charts ${wrong.length} wrong\n${wrong.join("\n")}\nEND`;
})();
