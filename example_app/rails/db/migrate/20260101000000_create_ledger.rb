class CreateLedger < ActiveRecord::Migration[6.1]
  def change
    create_table :invoices do |t|
      t.string :number, null: false, index: { unique: true }
      t.string :email, null: false
      t.integer :amount_cents, null: false
      t.datetime :paid_at
      t.timestamps
    end

    create_table :charges do |t|
      t.references :invoice, null: false, foreign_key: true
      t.string :key, null: false, index: { unique: true }
      t.integer :amount_cents, null: false
      t.timestamps
    end

    create_table :entries do |t|
      t.references :charge, null: false, foreign_key: true
      t.string :account, null: false
      t.integer :amount_cents, null: false
    end
  end
end
