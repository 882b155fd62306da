Linepool.task("bench.work") { |*arguments| Work.call(*arguments) }
