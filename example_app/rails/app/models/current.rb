class Current < ActiveSupport::CurrentAttributes
  attribute :customer
end
