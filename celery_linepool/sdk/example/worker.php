<?php
require __DIR__ . '/linepool.php';

$child = new Linepool\Child(); // first: from here on stdout is stderr

$child->task('example.add', fn (float $a, float $b, int $digits = 2) => round($a + $b, $digits));

$child->run();
