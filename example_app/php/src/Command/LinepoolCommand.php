<?php

namespace App\Command;

use App\Tasks;
use Linepool\{Child, Task};
use Symfony\Component\Console\Attribute\AsCommand;
use Symfony\Component\Console\Command\Command;
use Symfony\Component\Console\Input\InputInterface;
use Symfony\Component\Console\Output\OutputInterface;

require_once __DIR__ . '/../../lib/linepool.php';

#[AsCommand(name: 'linepool:work', description: 'Serves Celery tasks')]
final class LinepoolCommand extends Command
{
    public function __construct(private Tasks $tasks)
    {
        parent::__construct();
    }

    protected function execute(InputInterface $input, OutputInterface $output): int
    {
        $services = $this->getApplication()->getKernel()->getContainer()->get('services_resetter');
        $child = new Child();
        foreach ($this->tasks->all() as $name => $handler) {
            $child->task($name, function (Task $task, mixed ...$arguments) use ($handler, $services) {
                try {
                    return $handler($task, ...$arguments);
                } finally {
                    $services->reset(); // as between two requests
                }
            });
        }
        $child->run();
        return Command::SUCCESS;
    }
}
