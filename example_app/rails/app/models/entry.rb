class Entry < ApplicationRecord
  belongs_to :charge
end
