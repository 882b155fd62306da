require "net/http"

# Exchange rates, from a service that answers 429 to who asks too often.
module Rates
  class Limited < StandardError
    attr_reader :retry_after

    def initialize(retry_after)
      super("the rate limit is reached")
      @retry_after = retry_after
    end
  end

  def self.fetch(currency)
    response = Net::HTTP.get_response(URI("#{ENV.fetch("RATES_URL")}/#{currency}"))
    raise Limited, response["Retry-After"].to_f if response.is_a?(Net::HTTPTooManyRequests)

    response.value # raises for what is no success
    JSON.parse(response.body).fetch("rate")
  end
end
