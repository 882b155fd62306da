# frozen_string_literal: true

# Serves the jobs of the application in which Rails' integration tests run.

require "#{ENV.fetch("LINEPOOL_SDK")}/linepool"
require "#{ENV.fetch("DUMMY_APP")}/config/environment"

Linepool.serve_jobs
Linepool.run
