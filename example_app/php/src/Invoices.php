<?php

namespace App;

use Symfony\Contracts\Service\ResetInterface;

/** The invoices; it asks the database for each only once, until it is reset. */
final class Invoices implements ResetInterface
{
    private array $found = [];

    public function __construct(private Database $database)
    {
    }

    public function create(string $number, string $email, int $amount_cents): int
    {
        str_contains($email, '@') || throw new InvalidInvoice("$email is no address");
        $sql = 'INSERT INTO invoices (number, email, amount_cents) VALUES (?, ?, ?) RETURNING id';
        return $this->database->query($sql, $number, $email, $amount_cents)[0]['id'];
    }

    public function find(int $id): ?array
    {
        $sql = 'SELECT id, number, amount_cents, paid_at, (
            SELECT coalesce(sum(amount_cents), 0) FROM charges WHERE invoice_id = invoices.id
        ) AS charged_cents FROM invoices WHERE id = ?';
        return $this->found[$id] ??= $this->database->query($sql, $id)[0] ?? null;
    }

    /** @return list<int> */
    public function unpaid(): array
    {
        $sql = 'SELECT id FROM invoices WHERE paid_at IS NULL ORDER BY id';
        return array_column($this->database->query($sql), 'id');
    }

    /** Charges it once for a key, however often it is called. */
    public function charge(int $id, string $key): array
    {
        $cents = $this->find($id)['amount_cents'];
        $this->database->transaction(function () use ($id, $key, $cents): void {
            $this->database->query('INSERT OR IGNORE INTO charges VALUES (?, ?, ?)', $key, $id, $cents);
            $this->database->query("UPDATE invoices SET paid_at = datetime('now') WHERE id = ?", $id);
        });
        return ['invoice' => $id, 'amount_cents' => $cents];
    }

    /** Adds the invoices of a CSV file, and says after each how many there are by now. */
    public function import(string $path, callable $report): int
    {
        $file = fopen($path, 'r');
        fgetcsv($file, null, ',', '"', ''); // the first line names the columns
        for ($done = 0; $row = fgetcsv($file, null, ',', '"', ''); $report(++$done)) {
            $this->create($row[0], $row[1], (int) $row[2]);
        }
        return $done;
    }

    public function reset(): void
    {
        $this->found = [];
    }
}
