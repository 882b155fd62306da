# What each contender runs: a query, and a sleep of so many milliseconds.
module Work
  def self.call(milliseconds = 0, text = nil)
    Invoice.unpaid.count
    sleep(milliseconds / 1000.0) if milliseconds > 0
    text
  end
end
