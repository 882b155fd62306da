<?php

namespace App;

use Symfony\Contracts\Service\ResetInterface;

/** A connection that is opened when it is needed. */
final class Database implements ResetInterface
{
    private ?\PDO $pdo = null;

    public function __construct(private string $database)
    {
    }

    /** @return list<array<string, mixed>> */
    public function query(string $sql, mixed ...$values): array
    {
        $statement = $this->pdo()->prepare($sql);
        $statement->execute($values);
        return $statement->fetchAll(\PDO::FETCH_ASSOC);
    }

    public function transaction(callable $work): void
    {
        $this->pdo()->beginTransaction();
        $work();
        $this->pdo()->commit();
    }

    /** Rolls back what a task has left open, and none grows old between two tasks. */
    public function reset(): void
    {
        $this->pdo = null;
    }

    private function pdo(): \PDO
    {
        return $this->pdo ??= new \PDO("sqlite:{$this->database}");
    }
}
