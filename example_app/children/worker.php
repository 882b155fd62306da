#!/usr/bin/env php
<?php
declare(strict_types=1);

// First of all, replies get a descriptor of their own and stdout becomes stderr: no
// echo, warning or subprocess can come between the replies any more. A stream that is
// opened takes the lowest free descriptor, and that is 1 once STDOUT is closed.
$replies = fopen('php://fd/1', 'w');
fclose(STDOUT);
$stdout = fopen('php://stderr', 'w');

require __DIR__ . '/billing.php';

const TASKS = ['billing.charge' => 'charge', 'example.noisy' => 'noisy'];

function noisy(): string
{
    echo "echo goes to stderr\n";
    system('echo and so does a subprocess');
    return 'quiet';
}

// A warning is an exception: it fails its task instead of going unread.
set_error_handler(function (int $level, string $message, string $file, int $line): bool {
    throw new ErrorException($message, 0, $level, $file, $line);
});

function answer(array $payload): array
{
    try {
        $handler = TASKS[$payload['task']]
            ?? throw new BadFunctionCallException("unknown task {$payload['task']}");
        return ['status' => 'ok', 'result' => $handler(...$payload['args'], ...$payload['kwargs'])];
    } catch (Throwable $e) {
        $frames = "{$e->getFile()}({$e->getLine()})\n{$e->getTraceAsString()}";
        return ['status' => 'error', 'type' => $e::class, 'message' => $e->getMessage(),
            'backtrace' => explode("\n", $frames)];
    }
}

while (($line = fgets(STDIN)) !== false) {
    $request = json_decode($line, true, 512, JSON_THROW_ON_ERROR);
    $reply = ['id' => $request['id']] + answer($request['payload']);
    fwrite($replies, json_encode($reply, JSON_THROW_ON_ERROR) . "\n");
}
