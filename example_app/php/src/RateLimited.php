<?php

namespace App;

final class RateLimited extends \RuntimeException
{
    public function __construct(public float $after)
    {
        parent::__construct('the rate limit is reached');
    }
}
