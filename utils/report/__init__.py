from utils.common.fonts import forget_backend

forget_backend()  # before any module here imports matplotlib
