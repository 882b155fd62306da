import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';

export class InvalidInvoice extends Error {}

export class Invoices {
  #db;

  constructor(db) { this.#db = db; }

  create({ number, email, amount_cents }) {
    if (!email.includes('@')) throw new InvalidInvoice(`${email} is no address`);
    const sql = 'INSERT INTO invoices (number, email, amount_cents) VALUES (?, ?, ?)';
    return this.#db.prepare(sql).run(number, email, amount_cents).lastInsertRowid;
  }

  find(id) {
    const sql = `
      SELECT id, number, amount_cents, paid_at, (
        SELECT coalesce(sum(amount_cents), 0) FROM charges WHERE invoice_id = invoices.id
      ) AS charged_cents FROM invoices WHERE id = ?`;
    const [invoice] = this.#db.prepare(sql).all(id);
    return invoice;
  }

  unpaid() {
    const sql = 'SELECT id FROM invoices WHERE paid_at IS NULL ORDER BY id';
    return this.#db.prepare(sql).all().map(({ id }) => id);
  }

  /** Charges it once for a key, however often it is called. */
  charge(id, key) {
    const { amount_cents } = this.find(id);
    this.#db.transaction(() => {
      this.#db.prepare('INSERT OR IGNORE INTO charges VALUES (?, ?, ?)').run(key, id, amount_cents);
      this.#db.prepare("UPDATE invoices SET paid_at = datetime('now') WHERE id = ?").run(id);
    }).immediate();
    return { invoice: id, amount_cents };
  }

  /** Adds the invoices of a CSV file, and says after each how many there are by now. */
  async import(path, report) {
    let done = -1; // the first line names the columns
    for await (const line of createInterface({ input: createReadStream(path) })) {
      const [number, email, cents] = line.split(',');
      if (++done === 0) continue;
      this.create({ number, email, amount_cents: Number(cents) });
      report(done);
    }
    return done;
  }
}
