import { setTimeout } from 'node:timers/promises';

export class RateLimited extends Error {
  constructor(after) {
    super('the rate limit is reached');
    this.after = after;
  }
}

/** Exchange rates, from a service that answers 429 to who asks too often. */
export class Rates {
  #url;

  constructor(url) { this.#url = url; }

  async fetch(currency, signal) {
    const response = await fetch(`${this.#url}/${currency}`, { signal });
    if (response.status === 429) {
      throw new RateLimited(Number(response.headers.get('Retry-After')));
    }
    if (!response.ok) throw new Error(`${response.status} for ${currency}`);
    return (await response.json()).rate;
  }

  /** Asks again and again, until it is below the limit. */
  async below(currency, limit, signal) {
    for (;;) {
      const rate = await this.fetch(currency, signal);
      if (rate < limit) return rate;
      await setTimeout(100, undefined, { signal });
    }
  }
}
