// One order has one key. It is made before the first press, and kept in sessionStorage, which survives a reload.
// Every press sends the same key, so the server recognises the payment, and the button is never disabled.

const PRICE = 1299;
const at = (id) => document.getElementById(id);
const euro = (cents) => `${(cents / 100).toFixed(2)} €`;
const times = (count) => `${count}×`;
const wait = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

// sessionStorage belongs to one tab: two tabs are two customers.
let order = JSON.parse(sessionStorage.getItem("order")) ?? newOrder();

function newOrder() {
  return { id: `order-${crypto.randomUUID()}`, key: crypto.randomUUID(), card: "card-good", presses: 0 };
}

function keep(changes) {
  Object.assign(order, changes);
  sessionStorage.setItem("order", JSON.stringify(order));
  at("key").textContent = order.key;
  at("presses").textContent = times(order.presses);
  at("card").value = order.card;
}

async function press(lose) {
  keep({ presses: order.presses + 1 });
  const paying = { ...order };
  const name = `Press ${paying.presses}`;
  for (let again = 1; again; await wait(again)) {
    const answer = await send(paying, lose);
    if (order.id !== paying.id) return; // the page shows another order now
    again = answer.again;
    lose = false;
    if (answer.status === 402 && order.key === paying.key) keep({ isDeclined: true });
    say(name, answer);
    await readBooks();
  }
}

// A reply that breaks off counts as no reply.
async function send(paying, lose) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": `"${paying.key}"` };
  if (lose) headers["X-Lose-Reply"] = "true";
  const payment = { order_id: paying.id, minor_units: PRICE, card: paying.card };
  try {
    const response = await fetch("payments", { method: "POST", headers, body: JSON.stringify(payment) });
    const text = await response.text();
    const isJson = /json/.test(response.headers.get("Content-Type"));
    return {
      status: response.status,
      body: isJson ? JSON.parse(text) : { title: response.statusText },
      replayed: response.headers.has("Idempotency-Replayed"),
      again: Number(response.headers.get("Retry-After")),
    };
  } catch {
    return { status: "no reply", again: 0 };
  }
}

function told({ status, body, again }) {
  if (status === "no reply") return "Was the card charged? The page cannot know: press again.";
  if (again) return `${body.title}. The page asks again in ${again} s.`;
  if (status === 201) return `Paid ${euro(body.minor_units)}, payment ${body.payment_id.slice(0, 8)}.`;
  if (status === 402) return "The card was declined. Choose another one.";
  if (status === 422) {
    return "An earlier press had another card, so this one charged nothing. Choose the card that you pressed with before.";
  }
  return `${body.title}.`;
}

function say(name, answer) {
  const { status, again, replayed } = answer;
  const line = document.createElement("li");
  line.className = status === 201 ? "good" : again || status === "no reply" ? "wait" : "bad";
  const cells = [["who", name], ["status", status], ["text", told(answer)]];
  if (replayed) cells.push(["replayed", "replayed"]);
  for (const [kind, words] of cells) {
    const cell = document.createElement("span");
    cell.className = kind;
    cell.textContent = words;
    line.append(cell, " ");
  }
  at("answers").prepend(line);
  at("none").hidden = true;
}

// Replies may arrive out of order. The reply to the latest request wins.
let asked = 0;
let shown = 0;

async function readBooks() {
  const { id } = order;
  const mine = ++asked;
  const response = await fetch(`orders/${id}/books`).catch(() => null);
  if (!response?.ok) return;
  const books = await response.json();
  if (id !== order.id || mine < shown) return;
  shown = mine;
  const words = ["Not charged", "Charged once", "Charged twice"];
  at("charged").textContent = words[books.charges] ?? `Charged ${books.charges} times`;
  at("charged").dataset.charges = books.charges;
  at("runs").textContent = times(books.runs);
  at("booked").textContent = euro(books.minor_units);
}

at("pay").addEventListener("submit", (event) => {
  event.preventDefault();
  const lose = at("lose").checked;
  at("lose").checked = false;
  press(lose);
});

// A declined payment is final, and its key always replays the refusal. Another card is then another payment, and
// needs a new key. Otherwise it may be the same payment, and the key stays.
at("card").addEventListener("change", (event) => {
  const fresh = order.isDeclined ? { key: crypto.randomUUID(), isDeclined: false } : {};
  keep({ card: event.target.value, ...fresh });
});

at("another").addEventListener("click", () => {
  order = newOrder();
  at("lose").checked = false;
  keep({});
  at("answers").replaceChildren();
  at("none").hidden = false;
  readBooks();
});

keep({});
readBooks();
