<?php

namespace App;

/** Exchange rates, from a service that answers 429 to who asks too often. */
final class Rates
{
    public function __construct(private string $ratesUrl)
    {
    }

    public function fetch(string $currency): float
    {
        $context = stream_context_create(['http' => ['ignore_errors' => true]]);
        $body = fopen("{$this->ratesUrl}/$currency", 'r', false, $context);
        $headers = implode("\n", stream_get_meta_data($body)['wrapper_data']);
        if (preg_match('/^HTTP\S+ 429/', $headers)) {
            preg_match('/^Retry-After: *(\d+)/mi', $headers, $found);
            throw new RateLimited($found[1] ?? 60);
        }
        preg_match('/^HTTP\S+ 200/', $headers) || throw new \RuntimeException("no rate of $currency");
        return json_decode(stream_get_contents($body), flags: JSON_THROW_ON_ERROR)->rate;
    }

    /** Asks again and again, until it is below the limit; in between it calls $check. */
    public function below(string $currency, float $limit, callable $check): float
    {
        while (($rate = $this->fetch($currency)) >= $limit) {
            $check();
            usleep(100_000);
        }
        return $rate;
    }
}
