// Pictures as SVG.

const SVG = 'http://www.w3.org/2000/svg';

export const svg = (name, attributes = {}, ...children) => {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};

/** Draws whenever an element has another width: a picture that is only scaled scales its text, too. */
export const onWidth = (element, draw) => {
  let drawn = 0;
  const redraw = () => {
    if (!element.clientWidth || element.clientWidth === drawn) return;
    drawn = element.clientWidth;
    draw();
  };
  // In a frame of its own: drawing changes the height of what is observed.
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(element);
};
