// The reference of the API: /openapi.json as a page, without anything from elsewhere.

import { json } from "./server.js";

const $ = (id) => document.getElementById(id);
const MANY = 2 ** 31 - 1; // bounds of a type say nothing of a field
const METHODS = ["get", "post", "delete"];

/** An element with a class and children, texts among them. */
function element(name, kind, ...children) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

const nameOf = (ref) => ref.split("/").at(-1);

/** What a value may be, as pieces to append: "integer 1 … 128", or the name of a schema. */
function kindOf(schema) {
  if (schema.$ref) {
    const link = element("a", "", nameOf(schema.$ref));
    link.href = `#${nameOf(schema.$ref)}`;
    return [link];
  }
  const options = schema.anyOf ?? schema.oneOf;
  if (options) {
    const kinds = options.filter((each) => each.type !== "null").map(kindOf);
    return kinds.flatMap((kind, i) => (i ? [" or ", ...kind] : kind));
  }
  if (schema.enum) return [schema.enum.map((value) => JSON.stringify(value)).join(" or ")];
  if (schema.const !== undefined) return [JSON.stringify(schema.const)];
  if (schema.type === "array") {
    const most = schema.maxItems ? ` (at most ${number(schema.maxItems)})` : "";
    return [`list${most} of `, ...kindOf(schema.items ?? {})];
  }
  const length = schema.maxLength ? `, up to ${number(schema.maxLength)} characters` : "";
  return [`${schema.type ?? "any"}${rangeOf(schema)}${length}`];
}

const number = (value) => value.toLocaleString("en").replace("-", "−");
const told = (bound) => (Math.abs(bound) < MANY ? bound : undefined); // undefined is no number either

function rangeOf(schema) {
  const [least, most, above] = [schema.minimum, schema.maximum, schema.exclusiveMinimum].map(told);
  if (above !== undefined) return ` above ${number(above)}${most === undefined ? "" : `, up to ${number(most)}`}`;
  if (least !== undefined && most !== undefined) return ` ${number(least)} … ${number(most)}`;
  if (least !== undefined) return ` from ${number(least)}`;
  return most === undefined ? "" : ` up to ${number(most)}`;
}

/** A row for each field. */
function fields(rows) {
  const table = element("table");
  for (const { name, schema, required, description } of rows) {
    const row = table.insertRow();
    row.insertCell().append(element("code", "", name));
    row.insertCell().append(...kindOf(schema));
    const known = schema.default !== undefined && schema.default !== null;
    const without = known ? `${JSON.stringify(schema.default)} unless given` : "";
    row.insertCell().append(required ? "required" : without);
    row.insertCell().append(description ?? schema.description ?? "");
  }
  return element("div", "scroll", table);
}

function fieldsOf(schema) {
  const required = new Set(schema.required ?? []);
  return fields(
    Object.entries(schema.properties ?? {}).map(([name, each]) => ({ name, schema: each, required: required.has(name) })),
  );
}

function body(content, schemas) {
  return Object.entries(content ?? {}).flatMap(([kind, { schema = {} }]) => {
    const whole = schema.$ref ? schemas[nameOf(schema.$ref)] : schema;
    return [element("h3", "", `Body, ${kind}`), whole.properties ? fieldsOf(whole) : element("p", "", ...kindOf(schema))];
  });
}

function answers(responses) {
  const list = element("ul", "answers");
  for (const [status, { description, content }] of Object.entries(responses)) {
    const kinds = Object.entries(content ?? {}).flatMap(([kind, { schema }]) => [` · ${kind}: `, ...kindOf(schema ?? {})]);
    list.append(element("li", "", element("b", "", status), ` ${description}`, ...kinds));
  }
  return list;
}

function operation(path, method, what, schemas) {
  const name = element("code", "", element("b", method, method.toUpperCase()), ` ${path}`);
  const about = (what.description ?? "").split("\n\n");
  const parameters = (what.parameters ?? []).filter((each) => each.in !== "header");
  return element(
    "details",
    "card",
    element("summary", "", name, element("span", "", about[0])),
    ...about.slice(1).map((text) => element("p", "", text)),
    ...(parameters.length ? [element("h3", "", "In the address"), fields(parameters)] : []),
    ...body(what.requestBody?.content, schemas),
    element("h3", "", "Answers"),
    answers(what.responses),
  );
}

function schemaCard(name, schema) {
  const card = element("details", "card", element("summary", "", element("code", "", name)), fieldsOf(schema));
  card.id = name;
  return card;
}

/** A link to a schema opens it. */
function openNamed() {
  const named = $(decodeURIComponent(location.hash.slice(1)));
  if (named instanceof HTMLDetailsElement) {
    named.open = true;
    named.scrollIntoView();
  }
}

try {
  const { info, paths, components } = await json("/openapi.json");
  const schemas = components.schemas;
  $("model").textContent = `nsa-serve ${info.version}`;
  const operations = Object.entries(paths).flatMap(([path, each]) =>
    METHODS.filter((method) => each[method]).map((method) => operation(path, method, each[method], schemas)),
  );
  const cards = Object.entries(schemas).map(([name, schema]) => schemaCard(name, schema));
  $("reference").replaceChildren(...operations, element("h2", "", "Schemas"), ...cards);
  addEventListener("hashchange", openNamed);
  openNamed();
} catch (error) {
  $("state").textContent = error.message;
  $("state").classList.add("error");
}
