namespace :ledger do
  desc "Whether every charge has both its sides, and every paid invoice one charge"
  task check: :environment do
    sums = Entry.group(:account).sum(:amount_cents)
    puts sums.to_json
    abort "the ledger does not balance" unless sums.values.sum.zero?
    abort "a paid invoice has no charge" if Invoice.where.not(paid_at: nil).where.missing(:charges).exists?
  end
end
