class WorksController < ActionController::API
  def create
    render json: JSON.generate(Work.call(*JSON.parse(request.raw_post)))
  end
end
