// Makes one tree of elements like another by changing only what differs, so that focus, hover, selection and running
// animations stay. Children are matched by their place.

/**
 * @param {Element} from
 * @param {Element} to
 */
function morphAttributes(from, to) {
  for (const { name, value } of to.attributes) if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  for (const { name } of [...from.attributes]) if (!to.hasAttribute(name)) from.removeAttribute(name);
}

/**
 * @param {Node} from
 * @param {Node} to
 */
function morphNode(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName) {
    from.parentNode?.replaceChild(to.cloneNode(true), from);
  } else if (from instanceof Element && to instanceof Element) {
    morphAttributes(from, to);
    morphChildren(from, to);
  } else if (from.nodeValue !== to.nodeValue) {
    from.nodeValue = to.nodeValue;
  }
}

/**
 * Gives one element the children of another.
 * @param {Element} from
 * @param {Element | DocumentFragment} to
 */
export function morphChildren(from, to) {
  const old = [...from.childNodes];
  const fresh = [...to.childNodes];
  fresh.forEach((node, place) => {
    const before = old[place];
    if (before) morphNode(before, node);
    else from.append(node.cloneNode(true));
  });
  for (const node of old.slice(fresh.length)) node.remove();
}

/**
 * Gives an element the children that a text of HTML describes.
 * @param {Element} element
 * @param {string} html made by the server, where every value is escaped
 */
export function morphHtml(element, html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  morphChildren(element, template.content);
}
