import { connect } from './database.mjs';
import { Invoices } from './invoices.mjs';
import { Rates } from './rates.mjs';

/** All that the web server and the tasks have in common. */
export function boot() {
  return { invoices: new Invoices(connect()), rates: new Rates(process.env.RATES_URL) };
}
