'use strict';

// What happens to one row of ../data/invoices.csv. Money is counted in cents, and in
// BigInt: nothing is rounded, and a division by zero is an error instead of Infinity.
function charge({ invoice, customer, country, iban, currency, ...row }) {
  const instalments = BigInt(row.instalments);
  const net = BigInt(row.quantity) * BigInt(row.unit_cents);
  const tax = (net * BigInt(row.vat_percent) + 50n) / 100n;
  const total = net + tax;
  const first = total - (total / instalments) * (instalments - 1n);
  const ok = ibanOk(iban);
  const risk = (ok ? 0 : 60) + (iban.startsWith(country) ? 0 : 20) +
    (total < 1_000_000n ? 0 : 15);
  return {
    invoice, customer, tax_cents: Number(tax), total_cents: Number(total),
    total: formatMoney(total, currency), first_instalment_cents: Number(first),
    iban_ok: ok, risk, pid: process.pid,
  };
}

function ibanOk(iban) {
  const digits = (iban.slice(4) + iban.slice(0, 4))
    .replace(/[A-Z]/g, (letter) => parseInt(letter, 36));
  return BigInt(digits) % 97n === 1n; // the whole number is far beyond 2 ** 53
}

function formatMoney(cents, currency) {
  const whole = (cents / 100n).toLocaleString('en-US');
  return `${whole}.${String(cents % 100n).padStart(2, '0')} ${currency}`;
}

module.exports = { charge };
