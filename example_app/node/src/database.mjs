import { fileURLToPath } from 'node:url';
import Database from 'libsql';

const SCHEMA = `
  CREATE TABLE IF NOT EXISTS invoices (
    id INTEGER PRIMARY KEY, number TEXT NOT NULL UNIQUE, email TEXT NOT NULL,
    amount_cents INTEGER NOT NULL, paid_at TEXT
  );
  CREATE TABLE IF NOT EXISTS charges (
    key TEXT PRIMARY KEY, invoice_id INTEGER NOT NULL REFERENCES invoices,
    amount_cents INTEGER NOT NULL
  );
`;

export function connect(path = process.env.DATABASE ?? 'shop.db') {
  return new Database(path, { timeout: 10_000 }); // so long writers wait for each other
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  connect().exec(`PRAGMA journal_mode = WAL; ${SCHEMA}`);
}
