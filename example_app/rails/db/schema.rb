# This file is auto-generated from the current state of the database. Instead
# of editing this file, please use the migrations feature of Active Record to
# incrementally modify your database, and then regenerate this schema definition.
#
# This file is the source Rails uses to define your schema when running `bin/rails
# db:schema:load`. When creating a new database, `bin/rails db:schema:load` tends to
# be faster and is potentially less error prone than running all of your
# migrations from scratch. Old migrations may fail to apply correctly if those
# migrations use external dependencies or application code.
#
# It's strongly recommended that you check this file into your version control system.

ActiveRecord::Schema.define(version: 2026_01_01_000000) do

  create_table "charges", force: :cascade do |t|
    t.integer "invoice_id", null: false
    t.string "key", null: false
    t.integer "amount_cents", null: false
    t.datetime "created_at", precision: 6, null: false
    t.datetime "updated_at", precision: 6, null: false
    t.index ["invoice_id"], name: "index_charges_on_invoice_id"
    t.index ["key"], name: "index_charges_on_key", unique: true
  end

  create_table "entries", force: :cascade do |t|
    t.integer "charge_id", null: false
    t.string "account", null: false
    t.integer "amount_cents", null: false
    t.index ["charge_id"], name: "index_entries_on_charge_id"
  end

  create_table "invoices", force: :cascade do |t|
    t.string "number", null: false
    t.string "email", null: false
    t.integer "amount_cents", null: false
    t.datetime "paid_at"
    t.datetime "created_at", precision: 6, null: false
    t.datetime "updated_at", precision: 6, null: false
    t.index ["number"], name: "index_invoices_on_number", unique: true
  end

  add_foreign_key "charges", "invoices"
  add_foreign_key "entries", "charges"
end
