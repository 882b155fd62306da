class InvoiceMailer < ApplicationMailer
  def reminder(invoice)
    @invoice = invoice
    mail(to: invoice.email, subject: "Invoice #{invoice.number}")
  end
end
