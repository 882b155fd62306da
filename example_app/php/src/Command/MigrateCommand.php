<?php

namespace App\Command;

use App\Database;
use Symfony\Component\Console\Attribute\AsCommand;
use Symfony\Component\Console\Command\Command;
use Symfony\Component\Console\Input\InputInterface;
use Symfony\Component\Console\Output\OutputInterface;

#[AsCommand(name: 'shop:migrate', description: 'Creates the tables')]
final class MigrateCommand extends Command
{
    public function __construct(private Database $database)
    {
        parent::__construct();
    }

    protected function execute(InputInterface $input, OutputInterface $output): int
    {
        $this->database->query('CREATE TABLE IF NOT EXISTS invoices (
            id INTEGER PRIMARY KEY, number TEXT NOT NULL UNIQUE, email TEXT NOT NULL,
            amount_cents INTEGER NOT NULL, paid_at TEXT
        )');
        $this->database->query('CREATE TABLE IF NOT EXISTS charges (
            key TEXT PRIMARY KEY, invoice_id INTEGER NOT NULL REFERENCES invoices,
            amount_cents INTEGER NOT NULL
        )');
        return Command::SUCCESS;
    }
}
