<?php

namespace App;

use Linepool\{Outcome, Task};

/** The tasks by name, as the routes have pages. */
final class Tasks
{
    public function __construct(private Invoices $invoices, private Rates $rates)
    {
    }

    /** @return array<string, callable> */
    public function all(): array
    {
        return [
            'invoices.create' => fn (Task $task, array $fields) => $this->invoices->create(...$fields),

            'invoices.find' => fn (Task $task, int $id) => $this->invoices->find($id),

            // A task that is delivered twice charges once: its id is the key.
            'invoices.charge' => fn (Task $task, int $invoice) =>
                $this->invoices->charge($invoice, $task->id),

            'invoices.import' => fn (Task $task, string $path) =>
                $this->invoices->import($path, fn (int $done) => $task->progress(['done' => $done])),

            // Sends a task for each; the caller gets their ids and may wait for them.
            'invoices.collect' => fn (Task $task) => array_map(
                fn (int $invoice) => $task->publish('invoices.charge', [$invoice]),
                $this->invoices->unpaid(),
            ),

            'rates.fetch' => function (Task $task, string $currency) {
                try {
                    return $this->rates->fetch($currency);
                } catch (RateLimited $e) {
                    throw Outcome::throttle($e->after); // no retry is used up
                }
            },

            // check() ends the task if it was cancelled.
            'rates.below' => fn (Task $task, string $currency, float $limit) =>
                $this->rates->below($currency, $limit, fn () => $task->check()),
        ];
    }
}
